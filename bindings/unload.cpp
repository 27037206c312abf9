// Node unloads an addon when the last worker thread that loaded it ends. The unload must run the static
// destructors, a task of crtbeginS.o, which zig does not link. Without this file, exit() would call functions
// in memory that is gone. The names are those of the C++ ABI.
extern "C" {
extern void* __dso_handle;   // NOLINT(bugprone-reserved-identifier)
void __cxa_finalize(void*);  // NOLINT(bugprone-reserved-identifier)
}

namespace {

__attribute__((destructor)) void run_static_destructors() {
  __cxa_finalize(static_cast<void*>(&__dso_handle));
}

}  // namespace
