// Node unloads an addon with the last worker thread that loaded it. Running the static destructors is then the part of
// crtbeginS.o, which zig does not link: without it exit() calls into memory that is gone.
extern "C" {
extern void* __dso_handle;
void __cxa_finalize(void*);
}

namespace {

__attribute__((destructor)) void run_static_destructors() { __cxa_finalize(&__dso_handle); }

}  // namespace
