// Captures the loss and the fused head in a CUDA graph and compares what replays leave behind with what
// direct calls do, bit by bit. Built with the CUDA runtime and librapo_cuda.so (npm run test:gpu), or with
// the emulator.
#ifdef RAPO_CUDA_EMULATOR
#include "emulator.h"
#else
#include <cuda_runtime.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "kernels/cuda/library.h"
#include "kernels/dtypes.h"

extern "C" const rapo::cuda::Functions* rapo_cuda_functions(int abi_version);

namespace {

using namespace rapo;
using rapo::cuda::Report;

const cuda::Functions& functions() {
  static const auto* const table = rapo_cuda_functions(cuda::kAbiVersion);
  return *table;
}

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "graph: %s\n", what);
  std::exit(1);
}

void check(int error, const char* what) {
  if (error == 0) return;
  std::fprintf(stderr, "graph: %s: %s\n", what, functions().error_text(error));
  std::exit(1);
}

constexpr int kDevice = 0;
constexpr std::int64_t kRows = 37, kVocab = 1003, kChannels = 24, kChunkRows = 16;
void* stream = nullptr;

template <class T>
T* on_device(const std::vector<T>& values) {
  void* data = nullptr;
  check(functions().allocate(kDevice, values.size() * sizeof(T), &data), "allocating");
  check(functions().upload(kDevice, data, values.data(), values.size() * sizeof(T), stream), "uploading");
  return static_cast<T*>(data);
}

/// A sequence of numbers in [-1, 1).
double number() {
  static std::uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(state >> 40) / (1 << 23) - 1;
}

std::vector<std::uint16_t> matrix(std::int64_t rows, std::int64_t columns, double scale) {
  std::vector<std::uint16_t> values(static_cast<std::size_t>(rows * columns));
  for (auto& x : values) x = float_to_bfloat16(static_cast<float>(scale * number()));
  return values;
}

std::vector<float> floats(double low, double high) {
  std::vector<float> values(kRows);
  for (auto& x : values) x = static_cast<float>(low + (high - low) * (number() + 1) / 2);
  return values;
}

struct Output {
  void* data;
  std::size_t bytes;
};

std::vector<unsigned char> bits(const std::vector<Output>& outputs) {
  std::vector<unsigned char> all;
  for (const auto& output : outputs) {
    std::vector<unsigned char> part(output.bytes);
    check(functions().download(kDevice, part.data(), output.data, output.bytes, stream), "downloading");
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

void clear(const std::vector<Output>& outputs) {
  for (const auto& output : outputs) {
    const std::vector<unsigned char> zeros(output.bytes);
    check(functions().upload(kDevice, output.data, zeros.data(), output.bytes, stream), "clearing");
  }
}

/// `change` alters the inputs in place, so that a replay must give what a direct call gives then.
void compare(const char* name, const std::vector<Output>& outputs, const std::function<int()>& enqueue,
             const std::function<void(int)>& change) {
  const auto direct = [&] {
    clear(outputs);
    check(enqueue(), name);
    return bits(outputs);
  };
  change(0);
  const auto first = direct();
  expect(direct() == first, "two direct calls differ");
  change(1);
  const auto second = direct();
  expect(second != first, "the inputs do not matter");

  clear(outputs);
  const auto handle = static_cast<cudaStream_t>(stream);
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  check(cudaStreamBeginCapture(handle, cudaStreamCaptureModeGlobal), "starting the capture");
  const int error = enqueue();
  check(cudaStreamEndCapture(handle, &graph), "ending the capture");
  check(error, "enqueueing while the stream is captured");
  expect(bits(outputs) == std::vector<unsigned char>(first.size()), "the capture itself ran something");
  check(cudaGraphInstantiate(&executable, graph, 0), "instantiating");
  for (const int round : {1, 0, 0}) {
    change(round);
    clear(outputs);
    check(cudaGraphLaunch(executable, handle), "launching the graph");
    expect(bits(outputs) == (round == 0 ? first : second), "a replay differs from the direct call");
  }
  std::printf("graph: %s: replays give the bits of direct calls\n", name);
}

}  // namespace

int main() {
  const auto& f = functions();
  int devices = 0;
  check(f.device_count(&devices), "counting devices");
  expect(devices > 0, "there is no device");
  check(f.create_stream(kDevice, &stream), "making a stream");

  std::vector<std::int32_t> ids(kRows);
  for (auto& id : ids) id = static_cast<std::int32_t>((number() + 1) / 2 * kVocab);
  const auto advantages = floats(-1, 1), others = floats(-1, 1);
  Batch batch;
  batch.rows = kRows;
  batch.vocab_size = kVocab;
  batch.dtype = DType::kBFloat16;
  batch.token_ids = on_device(ids);
  batch.token_weights = on_device(floats(0.1, 1));
  float* const changing = on_device(advantages);
  batch.advantages = changing;
  batch.ref_weights = on_device(floats(0, 1));
  batch.old_logprobs = on_device(floats(-8, -6));
  const auto change = [&](int round) {
    const auto& values = round == 0 ? advantages : others;
    check(f.upload(kDevice, changing, values.data(), values.size() * sizeof(float), stream), "uploading");
  };
  Objective objective;
  objective.penalty = Penalty::kForward;
  objective.kl_coef = 0.1;
  objective.entropy_coef = 0.01;
  auto* const report = on_device(std::vector<Report>(1));
  const Output metrics{report, sizeof(Report)};
  const auto room = [&](std::size_t bytes) { return on_device(std::vector<unsigned char>(bytes)); };

  Batch full = batch;
  full.logits = on_device(matrix(kRows, kVocab, 3));
  full.ref_logits = on_device(matrix(kRows, kVocab, 3));
  full.logits_stride = full.ref_stride = kVocab;
  Outputs outputs;
  outputs.grad_logits = room(kRows * kVocab * 2);
  outputs.grad_dtype = DType::kBFloat16;
  outputs.grad_stride = kVocab;
  void* workspace = room(f.loss_workspace(kRows));
  compare(
      "loss", {metrics, {outputs.grad_logits, kRows * kVocab * 2}},
      [&] { return f.policy_loss(kDevice, &full, &objective, &outputs, workspace, report, stream); }, change);

  cuda::FusedHead head;
  head.batch = batch;
  head.channels = head.ref_channels = kChannels;
  head.hidden = on_device(matrix(kRows, kChannels, 1));
  head.weight = on_device(matrix(kVocab, kChannels, 1));
  head.ref_hidden = on_device(matrix(kRows, kChannels, 1));
  head.ref_weight = on_device(matrix(kVocab, kChannels, 1));
  head.hidden_stride = head.weight_stride = head.ref_hidden_stride = head.ref_weight_stride = kChannels;
  const std::size_t hidden_bytes = kRows * kChannels * 4, weight_bytes = kVocab * kChannels * 4;
  head.grad_hidden = room(hidden_bytes);
  head.grad_hidden_stride = head.grad_weight_stride = kChannels;
  head.grad_weight = reinterpret_cast<float*>(room(weight_bytes));
  check(f.fused_head_prepare(kDevice), "preparing the fused head");
  void* large = room(f.fused_head_workspace(&head, kChunkRows));
  const Outputs none;
  compare(
      "fused head", {metrics, {head.grad_hidden, hidden_bytes}, {head.grad_weight, weight_bytes}},
      [&] { return f.fused_head_loss(kDevice, &head, &objective, &none, kChunkRows, large, report, stream); },
      change);
  return 0;
}
