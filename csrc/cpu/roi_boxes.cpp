#include "cpu/roi_boxes.h"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace atrousops::cpu {

template <class G>
[[noreturn]] static void bad_box(const char* op, int64_t k, const G* box, const char* rule, const char* remedy) {
  bad_value(op, ": boxes must ", rule, "; got box ", k, " = (", box[0], ", ", box[1], ", ", box[2], ", ", box[3], ", ",
            box[4], "). ", remedy);
}

template <class G>
static void read_rows(const char* op, const G* rows, int64_t batch, std::vector<int64_t>& image, Boxes& out) {
  for (size_t k = 0; k < image.size(); ++k) {
    const G* box = rows + 5 * k;
    for (int i = 0; i < 5; ++i)
      if (!std::isfinite(box[i])) bad_box(op, k, box, "be finite", "Drop such boxes.");
    if (box[1] > box[3] || box[2] > box[4])
      bad_box(op, k, box, "have x1 <= x2 and y1 <= y2", "The columns are (image, x1, y1, x2, y2): swap the corners.");
    if (box[0] < 0 || box[0] >= static_cast<G>(batch) || box[0] != std::floor(box[0])) {
      const std::string rule = "have an image index among 0 .. " + std::to_string(batch - 1) + " in column 0";
      bad_box(op, k, box, rule.c_str(),
              "The columns are (image, x1, y1, x2, y2); a list of (L, 4) tensors has no index column.");
    }
    image[k] = static_cast<int64_t>(box[0]);
    out.corners.push_back({box[1], box[2], box[3], box[4]});
  }
}

Boxes read_boxes(const char* op, const Tensor& boxes, int64_t batch) {
  if (boxes.dim() != 2 || boxes.size(1) != 5) bad_value(op, ": boxes must have shape (K, 5)");
  const Tensor rows = dense(boxes, false);
  Boxes out;
  out.is_double = boxes.scalar_type() == ScalarType::Double;
  std::vector<int64_t> image(boxes.size(0));
  out.corners.reserve(image.size());
  if (out.is_double)
    read_rows(op, data<double>(rows), batch, image, out);
  else if (boxes.scalar_type() == ScalarType::Float)
    read_rows(op, data<float>(rows), batch, image, out);
  else
    bad_value(op, ": boxes must be float32 or float64");

  out.first.assign(batch + 1, 0);
  for (const int64_t n : image) ++out.first[n + 1];
  for (int64_t n = 0; n < batch; ++n) out.first[n + 1] += out.first[n];
  out.by_image.resize(image.size());
  std::vector<int64_t> next(out.first.begin(), out.first.end() - 1);
  for (size_t k = 0; k < image.size(); ++k) out.by_image[next[image[k]]++] = static_cast<int64_t>(k);
  return out;
}

void check_feature_map(const char* op, const Tensor& t) {
  if (t.dim() != 4) bad_value(op, ": input must have shape (N, C, H, W)");
  if (t.size(2) == 0 || t.size(3) == 0) bad_value(op, ": input must have pixels");
  if (t.size(2) >= INT32_MAX / std::max<int64_t>(t.size(3), 1))
    bad_value(op, ": input must have fewer than 2^31 pixels a plane");
}

void check_shape(const char* op, const char* argument, const Tensor& t, const std::vector<int64_t>& expected) {
  if (sizes_of(t) == expected) return;
  std::ostringstream text;
  text << op << ": " << argument << " must have shape (";
  for (size_t i = 0; i < expected.size(); ++i) text << (i ? ", " : "") << expected[i];
  text << "); got (";
  for (int64_t i = 0; i < t.dim(); ++i) text << (i ? ", " : "") << t.size(i);
  bad_value(text.str(), ")");
}

}  // namespace atrousops::cpu
