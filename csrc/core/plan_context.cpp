#include "core/plan.h"

namespace atrousops::core {

ContextDecision plan_context(const ContextStack& stack, const ContextDevice& device,
                             const std::function<double()>& by_layers) {
  ContextDecision d;
  d.one = context_plan(stack, device);
  if (d.one.cluster == 0) {
    d.reason = "layers: one launch " + d.one.reason;
    return d;
  }
  d.by_layers = by_layers();
  const std::string ratio = fixed2(d.one.seconds / d.by_layers);
  d.together = d.one.seconds / d.by_layers < kMargin;
  d.reason = d.together
                 ? "one launch: " + std::to_string(d.one.cluster) + " blocks an image, " + std::to_string(d.one.rows) +
                       " rows each; predicted " + ratio + " of the layers' time"
                 : "layers: one launch would take " + ratio + " of their time, and must be under " + fixed2(kMargin);
  return d;
}

}  // namespace atrousops::core
