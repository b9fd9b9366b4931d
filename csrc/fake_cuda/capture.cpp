// Graphs: what is enqueued on a captured stream becomes nodes, which a launch of the graph runs again.
#include <algorithm>
#include <map>
#include <set>

#include "fake_cuda/runtime.h"

namespace fake_cuda {

// Blocks that a graph's own allocations took.
struct Owned {
  std::set<void*> blocks;
  ~Owned();
};
// Whether torch has freed each meanwhile.
static std::map<void*, bool>& owned_by_graphs() {
  static auto* all = new std::map<void*, bool>;
  return *all;
}
Owned::~Owned() {
  for (void* p : blocks) {
    const bool is_freed = owned_by_graphs()[p];
    owned_by_graphs().erase(p);
    // A tensor that outlives the graph frees its memory itself.
    if (!is_freed) continue;
    drain_device(device_of(p));
    release(p);
  }
}

using Nodes = std::vector<std::shared_ptr<CUgraphNode_st>>;

struct Capture {
  cudaStream_t origin;
  cudaStreamCaptureMode mode;
  cudaGraph_t graph;
  unsigned long long id;
  const int* thread;  // an address that only this thread has
  bool is_valid = true;
  std::set<cudaStream_t> streams = {};
};

static std::set<Capture*> going_on;
static thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
static thread_local int this_thread;

}  // namespace fake_cuda

struct CUgraph_st {
  fake_cuda::Nodes nodes = {};
  std::shared_ptr<fake_cuda::Owned> owned = std::make_shared<fake_cuda::Owned>();
};
struct CUgraphExec_st {
  fake_cuda::Nodes nodes;
  std::shared_ptr<fake_cuda::Owned> owned;
};

namespace fake_cuda {

static bool forbids(const Capture& c) {
  if (thread_mode == cudaStreamCaptureModeRelaxed || c.mode == cudaStreamCaptureModeRelaxed) return false;
  const bool is_global = c.mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
  return is_global || c.thread == &this_thread;
}

cudaError_t refuse_in_capture(const char* what) {
  for (Capture* c : going_on) {
    if (!forbids(*c)) continue;
    c->is_valid = false;
    return fail(cudaErrorStreamCaptureUnsupported, what);
  }
  return cudaSuccess;
}

cudaError_t capture(cudaStream_t s, Work work) {
  Capture& c = *s->capture;
  if (!c.is_valid) return fail(cudaErrorStreamCaptureInvalidated, "work for a capture that has failed");
  c.graph->nodes.push_back(std::make_shared<CUgraphNode_st>(CUgraphNode_st{std::move(work), s->tail}));
  s->tail = {c.graph->nodes.back().get()};
  return cudaSuccess;
}

bool free_with_graph(void* p) {
  const auto block = owned_by_graphs().find(p);
  if (block == owned_by_graphs().end()) return false;
  return block->second = true;
}
void own_by_graph(cudaStream_t s, void* p) {
  s->capture->graph->owned->blocks.insert(p);
  owned_by_graphs()[p] = false;
}

// In any order that the edges allow: that of the capture, or a random one.
static cudaError_t run(const Nodes& nodes) {
  if (!is_shuffled()) {
    for (const auto& node : nodes)
      if (const cudaError_t e = node->work()) return e;
    return cudaSuccess;
  }
  std::set<cudaGraphNode_t> done;
  std::vector<cudaGraphNode_t> left;
  for (const auto& node : nodes) left.push_back(node.get());
  const auto is_done = [&](cudaGraphNode_t n) { return done.count(n) != 0; };
  while (!left.empty()) {
    std::vector<size_t> ready;
    for (size_t i = 0; i < left.size(); ++i)
      if (std::all_of(left[i]->after.begin(), left[i]->after.end(), is_done)) ready.push_back(i);
    const size_t chosen = ready[draw(ready.size())];
    if (const cudaError_t e = left[chosen]->work()) return e;
    done.insert(left[chosen]);
    left.erase(left.begin() + static_cast<std::ptrdiff_t>(chosen));
  }
  return cudaSuccess;
}

// Work of a stream that joined must come before the end of the stream where the capture began.
static bool is_joined(const Capture& c) {
  std::set<cudaGraphNode_t> reached;
  std::vector<cudaGraphNode_t> open = c.origin->tail;
  while (!open.empty()) {
    cudaGraphNode_t n = open.back();
    open.pop_back();
    if (reached.insert(n).second) open.insert(open.end(), n->after.begin(), n->after.end());
  }
  return reached.size() == c.graph->nodes.size();
}

}  // namespace fake_cuda

using namespace fake_cuda;

FAKE_CUDA_API cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode) {
  Lock lock(mutex());
  static unsigned long long ids = 0;
  if (const cudaError_t e = enter()) return e;
  if (s == find(nullptr)) return fail(cudaErrorStreamCaptureUnsupported, "capture of the legacy stream");
  if (find(s) != s) return fail(cudaErrorStreamCaptureUnsupported, "capture of the legacy stream");
  if (s->capture) return fail(cudaErrorIllegalState, "a stream that is being captured already");
  s->capture = new Capture{s, mode, new CUgraph_st, ++ids, &this_thread};
  s->capture->streams.insert(s);
  s->tail.clear();
  going_on.insert(s->capture);
  return cudaSuccess;
}

FAKE_CUDA_API cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
  Lock lock(mutex());
  *graph = nullptr;
  Capture* const c = s->capture;
  if (!c || c->origin != s) return fail(cudaErrorIllegalState, "no capture began on this stream");
  if (c->thread != &this_thread && c->mode != cudaStreamCaptureModeRelaxed)
    return fail(cudaErrorStreamCaptureWrongThread, "cudaStreamEndCapture");
  const bool joined = is_joined(*c);
  for (cudaStream_t joined_stream : c->streams) {
    joined_stream->capture = nullptr;
    joined_stream->tail.clear();
  }
  going_on.erase(c);
  const std::unique_ptr<Capture> last(c);
  if (!c->is_valid || !joined) {
    delete c->graph;
    return c->is_valid ? fail(cudaErrorStreamCaptureUnjoined, "a stream that joined the capture did not come back")
                       : fail(cudaErrorStreamCaptureInvalidated, "the capture had failed");
  }
  *graph = c->graph;
  return cudaSuccess;
}

FAKE_CUDA_API cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  cudaStream_t s = find(handle);
  if (event->capture && going_on.count(event->capture)) {
    if (s->capture && s->capture != event->capture) return fail(cudaErrorStreamCaptureUnsupported, "two captures");
    if (!s->capture) s->tail.clear();
    s->capture = event->capture;
    s->capture->streams.insert(s);
    for (cudaGraphNode_t n : event->nodes)
      if (std::find(s->tail.begin(), s->tail.end(), n) == s->tail.end()) s->tail.push_back(n);
    return cudaSuccess;
  }
  if (s->capture && event->last) {
    s->capture->is_valid = false;
    return fail(cudaErrorStreamCaptureIsolation, "a captured stream waits for an event of none");
  }
  if (event->last && !event->last->done) s->queue.push_back({nullptr, nullptr, event->last});
  return cudaSuccess;
}

FAKE_CUDA_API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status,
                                                   unsigned long long* id, cudaGraph_t* graph,
                                                   const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges,
                                                   size_t* count) {
  Lock lock(mutex());
  cudaStream_t s = find(handle);
  const Capture* c = s->capture;
  *status = !c            ? cudaStreamCaptureStatusNone
            : c->is_valid ? cudaStreamCaptureStatusActive
                          : cudaStreamCaptureStatusInvalidated;
  if (id) *id = c ? c->id : 0;
  if (graph) *graph = c ? c->graph : nullptr;
  if (nodes) *nodes = s->tail.data();
  if (edges) *edges = nullptr;
  if (count) *count = s->tail.size();
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status) {
  return cudaStreamGetCaptureInfo(s, status, nullptr, nullptr, nullptr, nullptr, nullptr);
}
FAKE_CUDA_API cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t handle, cudaGraphNode_t* nodes,
                                                              const cudaGraphEdgeData*, size_t count, unsigned flags) {
  Lock lock(mutex());
  cudaStream_t s = find(handle);
  if (!s->capture) return fail(cudaErrorIllegalState, "cudaStreamUpdateCaptureDependencies");
  if (flags == cudaStreamSetCaptureDependencies) s->tail.clear();
  s->tail.insert(s->tail.end(), nodes, nodes + count);
  return cudaSuccess;
}

FAKE_CUDA_API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t g, unsigned long long) {
  Lock lock(mutex());
  *exec = new CUgraphExec_st{g->nodes, g->owned};
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  return enqueue(s, [nodes = exec->nodes, owned = exec->owned] { return run(nodes); });
}
FAKE_CUDA_API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  Lock lock(mutex());
  delete exec;
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaGraphDestroy(cudaGraph_t g) {
  Lock lock(mutex());
  delete g;
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t* nodes, size_t* count) {
  Lock lock(mutex());
  if (nodes)
    for (size_t i = 0; i < std::min(*count, g->nodes.size()); ++i) nodes[i] = g->nodes[i].get();
  *count = g->nodes.size();
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t node, cudaGraphNode_t* after, cudaGraphEdgeData*,
                                                       size_t* count) {
  Lock lock(mutex());
  if (after) std::copy_n(node->after.begin(), std::min(*count, node->after.size()), after);
  *count = node->after.size();
  return cudaSuccess;
}
