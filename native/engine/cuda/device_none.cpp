#include <limits>

#include "cuda/device.h"

namespace rapo::device {

bool has_cuda() { return false; }

int count_devices(std::string&) { return 0; }
void enter(int) {}

std::int64_t free_bytes(at::Device) { return std::numeric_limits<std::int64_t>::max(); }
void* stream(at::Device) { return nullptr; }
void synchronize(at::Device) {}

struct Graphs::Impl {};
Graphs::Graphs(at::Device) {}
Graphs::~Graphs() = default;
void Graphs::run(std::int64_t, const std::function<void()>& step) { step(); }

}  // namespace rapo::device
