// The one exception type of rapo's native code. The bindings turn it into a RapoError of JS with the same
// code.
#pragma once

#include <stdexcept>
#include <string>

namespace rapo {

enum class ErrorCode {
  kInvalidArgument,  // a value, shape or dtype from the caller
  kNonFinite,        // NaN or infinity where the formulas have none; the message names the row
  kIo,               // the operating system refused a file operation
  kFormat,           // a file's content is malformed
  kUnsupported,      // valid, but this build or model does not support it
  kAborted,          // the caller set the cancel flag
  kOutOfMemory,
  kDevice,       // CUDA is missing or failed; the message says why
  kDistributed,  // another process of the run failed, did not come, or cannot be reached
};

constexpr const char* code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "ERR_RAPO_INVALID_ARGUMENT";
    case ErrorCode::kNonFinite:
      return "ERR_RAPO_NON_FINITE";
    case ErrorCode::kIo:
      return "ERR_RAPO_IO";
    case ErrorCode::kFormat:
      return "ERR_RAPO_FORMAT";
    case ErrorCode::kUnsupported:
      return "ERR_RAPO_UNSUPPORTED";
    case ErrorCode::kAborted:
      return "ERR_RAPO_ABORTED";
    case ErrorCode::kOutOfMemory:
      return "ERR_RAPO_OUT_OF_MEMORY";
    case ErrorCode::kDevice:
      return "ERR_RAPO_DEVICE";
    case ErrorCode::kDistributed:
      return "ERR_RAPO_DISTRIBUTED";
  }
  return "ERR_RAPO_INTERNAL";
}

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

/// Throws Error(kInvalidArgument).
[[noreturn]] inline void invalid(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, message);
}

}  // namespace rapo
