// cp.async of sm_80 and its groups.
#include <cstring>

#include "machine.h"

namespace ptx {

// Copies land when their thread waits for their group; until then the destination is poison.
namespace {
struct Copies : hc::Attached {
  struct Copy {
    uint64_t to;
    const char* from;
    int bytes, source_bytes, line;
  };
  std::vector<std::vector<Copy>> groups{1};
};
}  // namespace

void cp_async(uint64_t to, uint64_t from, int bytes, int source_bytes, int line) {
  run_apart();
  if (source_bytes < 0 || source_bytes > bytes) fail("cp.async: more source bytes than it copies", line);
  if (from % static_cast<uint64_t>(bytes) != 0) fail("cp.async: the global address is not aligned to the copy", line);
  char* place = cluster_bytes(to, static_cast<uint32_t>(bytes), static_cast<uint32_t>(bytes), "cp.async", line);
  mark_written(hc::self->block->rank, own_address(to), static_cast<uint32_t>(bytes));
  std::memset(place, 0xff, static_cast<size_t>(bytes));
  const char* source = nullptr;
  if (source_bytes) source = checked_global(from, static_cast<uint64_t>(source_bytes), "cp.async", line);
  hc::attached<Copies>().groups.back().push_back({to, source, bytes, source_bytes, line});
}
void cp_async_commit() { hc::attached<Copies>().groups.emplace_back(); }
void cp_async_wait(int pending) {
  auto& groups = hc::attached<Copies>().groups;
  while (static_cast<int>(groups.size()) - 1 > pending) {
    for (const auto& c : groups.front()) {
      char* to = cluster_bytes(c.to, static_cast<uint32_t>(c.bytes), 1, "cp.async", c.line);
      std::memset(to, 0, static_cast<size_t>(c.bytes));
      if (c.from) std::memcpy(to, c.from, static_cast<size_t>(c.source_bytes));
    }
    groups.erase(groups.begin());
  }
}

}  // namespace ptx
