use super::*;
use crate::kernels::harness::devices;

#[test]
fn shader_equals_twin() {
    devices::lockstep(cases);
}
