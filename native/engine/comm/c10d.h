// What the files have in common that use torch's c10d.
#pragma once

#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <exception>
#include <string>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace rapo {

inline std::string text_of(const std::exception& error) {
  const auto* c10_error = dynamic_cast<const c10::Error*>(&error);
  std::string text = c10_error ? c10_error->what_without_backtrace() : error.what();
  // Gloo's advice, which names no rank, follows the first sentence.
  return text.substr(0, std::min(text.find('\n'), text.find(". This is typically")));
}

inline c10d::TCPStoreOptions store_options(std::int64_t port, bool serves,
                                           std::chrono::milliseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(port);
  options.isServer = serves;
  options.waitWorkers = false;  // the ranks wait for each other's keys, which say who is missing
  options.timeout = timeout;
  options.multiTenant = true;
  options.useLibUV = false;
  return options;
}

}  // namespace rapo
