enable wgpu_cooperative_matrix;
// The matrix product through cooperative matrices of 8 x 8.
const SIDE = 8u;
alias FromA = coop_mat8x8<a_t, A>;
alias FromB = coop_mat8x8<b_t, B>;
alias Sums = coop_mat8x8<f32, C>;
//!include matmul_cooperative
