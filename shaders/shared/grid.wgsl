// The workgroup's number when the grid may be folded into y (more than 65,535 groups).
fn group_number(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.y * groups.x + group.x;
}
