// Node unloads an addon with the last worker thread that loaded it. Running the static destructors is then
// the part of crtbeginS.o, which zig does not link: without it exit() calls into memory that is gone. The
// names are the C++ ABI's.
extern "C" {
extern void* __dso_handle;   // NOLINT(bugprone-reserved-identifier)
void __cxa_finalize(void*);  // NOLINT(bugprone-reserved-identifier)
}

namespace {

__attribute__((destructor)) void run_static_destructors() {
  __cxa_finalize(static_cast<void*>(&__dso_handle));
}

}  // namespace
