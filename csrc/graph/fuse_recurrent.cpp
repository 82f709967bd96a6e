// Gradients of the last step of a recurrent layer.
#include "elementwise.h"
#include "fuser.h"
#include "recurrent.h"

namespace gs {

// The gradient of all outputs of a layer, zeros but for the last step of each sequence (y[:, -1]
// went on) -> the gradient of the last state, which enters there, too: no zeros are written and
// read for the other steps.
void Fuser::last_step(int k) {
  if (!is(k, "recurrent_backward")) return;
  const RecurrentParams& p = params<RecurrentParams>(k);
  const RecordedBuffer dout = buffer(k, 5);
  // (batch_sizes, a gradient of the last state, both directions)
  if (buffer(k, 2).object >= 0 || dout.object < 0 || buffer(k, 6).object >= 0 || p.reverse ||
      p.out_row != p.hidden)
    return;
  int fill;
  std::vector<int> copies;
  const int64_t H = p.hidden;
  if (!pieces_of(dout, p.steps * p.batch * H, k, true, &fill, &copies) || copies.size() != 1 ||
      !is(copies[0], "copy"))
    return;
  const int from = copies[0];
  const CopyParams& c = params<CopyParams>(from);
  if (buffer(from, 1).offset != (p.steps - 1) * p.row_t * H * (int64_t)sizeof(float)) return;
  // (batch, H), its two axes merged where rows of both follow each other
  const bool rows = c.ndim == 2 && c.shape[0] == p.batch && c.shape[1] == H &&
                    c.in_strides[0] == H && c.in_strides[1] == 1 &&
                    c.out_strides[0] == p.row_b * H && c.out_strides[1] == 1,
             flat = c.ndim == 1 && c.shape[0] == p.batch * H && c.in_strides[0] == 1 &&
                    c.out_strides[0] == 1 && (p.row_b == 1 || p.batch == 1);
  const RecordedBuffer piece = buffer(from, 0);
  if (!(rows || flat) || piece.object < 0 || !clear_reads(piece, from, k)) return;
  RecordedOp op = ops[(size_t)k];
  op.buffers[5] = RecordedBuffer{-1, 0, kRead};
  op.buffers[6] = RecordedBuffer{piece.object, piece.offset, kRead};
  dead[(size_t)fill] = 1;
  join(std::move(op), k, from, "takes the gradient of the last step");
}

}  // namespace gs
