// A libnccl for tests, as far as rank 0 of a broadcasting group calls it. The ranks of a fake server
// (test/helpers/fake-nccl.ts) connect to the port in the first 4 bytes of the id and send their rank, 4
// bytes. Rank 0 then sends messages: 'R' or 'B', 8 bytes of length, data. The answer to 'R' is the rank's 4
// bytes, to 'B' one byte. With RAPO_FAKE_NCCL=deaf ncclCommAbort does nothing.
#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

namespace {

struct Id {
  char bytes[128];
};

struct Comm {
  std::vector<int> peers;
};

constexpr int kSuccess = 0, kSystem = 2, kArgument = 4, kRemote = 6;
constexpr int kUint8 = 1, kFloat32 = 7, kSum = 0;

int listener = -1;

bool transfer(ssize_t (*move)(int, void*, std::size_t), int peer, void* data, std::size_t bytes) {
  auto* at = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t moved = move(peer, at, bytes);
    if (moved <= 0) return false;
    at += moved;
    bytes -= static_cast<std::size_t>(moved);
  }
  return true;
}

bool send_all(int peer, const void* data, std::size_t bytes) {
  const auto move = [](int fd, void* from, std::size_t count) {
    return ::send(fd, from, count, MSG_NOSIGNAL);
  };
  return transfer(move, peer, const_cast<void*>(data), bytes);
}

bool receive_all(int peer, void* data, std::size_t bytes) {
  const auto move = [](int fd, void* to, std::size_t count) { return ::recv(fd, to, count, 0); };
  return transfer(move, peer, data, bytes);
}

bool send_message(int peer, char kind, const void* data, std::uint64_t bytes) {
  return send_all(peer, &kind, 1) && send_all(peer, &bytes, sizeof bytes) && send_all(peer, data, bytes);
}

}  // namespace

extern "C" {

int ncclGetUniqueId(Id* id) {
  listener = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* where = reinterpret_cast<sockaddr*>(&address);
  if (::bind(listener, where, size) != 0 || ::listen(listener, 16) != 0 ||
      ::getsockname(listener, where, &size) != 0)
    return kSystem;
  const std::uint32_t port = ntohs(address.sin_port);
  std::memset(id->bytes, 0x5a, sizeof id->bytes);
  std::memcpy(id->bytes, &port, sizeof port);
  return kSuccess;
}

int ncclCommInitRank(void** out, int size, Id, int rank) {
  if (rank != 0 || size < 2) return kArgument;
  const int own = listener;
  std::vector<int> peers(static_cast<std::size_t>(size), -1);
  for (int i = 1; i < size; ++i) {
    const int peer = ::accept(own, nullptr, nullptr);
    std::int32_t theirs = 0;
    if (peer < 0 || !receive_all(peer, &theirs, sizeof theirs)) return kRemote;
    // Two of one rank, or none of another, are what wrong offsets look like.
    if (theirs < 1 || theirs >= size || peers[static_cast<std::size_t>(theirs)] >= 0) return kArgument;
    peers[static_cast<std::size_t>(theirs)] = peer;
  }
  ::close(own);
  peers.erase(peers.begin());
  *out = new Comm{peers};
  return kSuccess;
}

int ncclAllReduce(const void* from, void* to, std::size_t count, int type, int operation, void* comm, void*) {
  if (count != 1 || type != kFloat32 || operation != kSum) return kArgument;
  float sum = 0;
  std::memcpy(&sum, from, sizeof sum);
  for (const int peer : static_cast<Comm*>(comm)->peers) {
    float theirs = 0;
    if (!send_message(peer, 'R', from, sizeof sum) || !receive_all(peer, &theirs, sizeof theirs))
      return kRemote;
    sum += theirs;
  }
  std::memcpy(to, &sum, sizeof sum);
  return kSuccess;
}

int ncclBroadcast(const void* from, void*, std::size_t count, int type, int root, void* comm, void*) {
  if (type != kUint8 || root != 0) return kArgument;
  const auto& peers = static_cast<Comm*>(comm)->peers;
  for (const int peer : peers)
    if (!send_message(peer, 'B', from, count)) return kRemote;
  for (const int peer : peers) {
    char done = 0;
    if (!receive_all(peer, &done, 1)) return kRemote;
  }
  return kSuccess;
}

int ncclCommAbort(void* comm) {
  const char* mode = std::getenv("RAPO_FAKE_NCCL");
  if (mode && std::strcmp(mode, "deaf") == 0) return kSuccess;
  for (const int peer : static_cast<Comm*>(comm)->peers) ::shutdown(peer, SHUT_RDWR);
  return kSuccess;
}

int ncclCommDestroy(void* comm) {
  for (const int peer : static_cast<Comm*>(comm)->peers) ::close(peer);
  delete static_cast<Comm*>(comm);
  return kSuccess;
}

const char* ncclGetErrorString(int code) {
  return code == kRemote ? "remote process exited or there was a network error" : "fake error";
}

}  // extern "C"
