// For a libtorch without c10d or Gloo: one process can train, several cannot, and no group can be made with
// SGLang's workers.
#include "comm/broadcast.h"
#include "comm/world.h"

namespace rapo {
namespace {

[[noreturn]] void unsupported() {
  throw Error(
      ErrorCode::kUnsupported,
      "several processes cannot train together: the libtorch that the engine was compiled against has "
      "no c10d with Gloo");
}

}  // namespace

World::World(WorldPlace place) : place_(std::move(place)) {}
std::vector<double> World::numbers(const std::string&, double, const Control&) { unsupported(); }
bool World::is_supported() { return false; }
std::shared_ptr<World> World::open(const WorldPlace&, const Control&) { unsupported(); }
std::shared_ptr<StoreServer> StoreServer::open() { unsupported(); }
std::shared_ptr<GroupStore> GroupStore::open(const std::string&) {
  throw Error(ErrorCode::kUnsupported,
              "no group can be made with SGLang's workers: the libtorch that the engine was compiled against "
              "has no c10d with Gloo");
}

}  // namespace rapo
