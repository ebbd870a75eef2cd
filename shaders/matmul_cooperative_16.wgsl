enable wgpu_cooperative_matrix;
// The matrix product through cooperative matrices of 16 x 16.
const SIDE = 16u;
alias FromA = coop_mat16x16<a_t, A>;
alias FromB = coop_mat16x16<b_t, B>;
alias Sums = coop_mat16x16<f32, C>;
//!include matmul_cooperative
