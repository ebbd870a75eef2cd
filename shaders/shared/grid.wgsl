// A grid is dispatched in one piece or in several. This is where the piece begins.
@group(1) @binding(0) var<uniform> first_group: u32;

// The workgroup's number in the grid.
fn group_number(group: vec3<u32>) -> u32 {
    return first_group + group.x;
}
