// A fiber: a stack, and a switch to it and back that costs a few nanoseconds (ucontext's costs a system call).
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#include <stdexcept>

#if defined(__SANITIZE_ADDRESS__)
#define FD_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define FD_ASAN 0
#endif

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace fastdecode {
namespace emulated {

#if defined(__x86_64__)
// Saves what a call must preserve on this stack, leaves its top in *from, and goes on where `to` was left.
extern "C" void fd_switch(void** from, void* to);
asm(R"(
.text
.globl fd_switch
.hidden fd_switch
.type fd_switch, @function
fd_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fd_switch, .-fd_switch
)");
#elif defined(__aarch64__)
extern "C" void fd_switch(void** from, void* to);
asm(R"(
.text
.globl fd_switch
.hidden fd_switch
.type fd_switch, %function
fd_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size fd_switch, .-fd_switch
)");
#endif

constexpr size_t kStack = FD_ASAN ? 512 << 10 : 128 << 10;

// Where a thread of control is left, be it a fiber's or the scheduler's.
struct Context {
#if defined(__x86_64__) || defined(__aarch64__)
  void* top = nullptr;
#else
  ucontext_t saved;
#endif
  const void* bottom = nullptr;  // of its stack, for AddressSanitizer
  size_t bytes = 0;
  void* fake = nullptr;
};

class Stack {
 public:
  Stack()
      : base_(static_cast<char*>(mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    if (base_ == MAP_FAILED) throw std::runtime_error("no memory for the stack of an emulated thread");
  }
  ~Stack() { munmap(base_, kStack); }
  Stack(const Stack&) = delete;

  // The next switch to the context calls `begin`, which must never return.
  void prepare(Context* context, void (*begin)()) {
#if FD_ASAN
    ASAN_UNPOISON_MEMORY_REGION(base_, kStack);
#endif
    context->bottom = base_, context->bytes = kStack, context->fake = nullptr;
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(base_ + kStack);
    *--top = nullptr;  // keeps the stack as a call leaves it, and ends backtraces
    *--top = reinterpret_cast<void*>(begin);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    context->top = top;
#elif defined(__aarch64__)
    uint64_t* top = reinterpret_cast<uint64_t*>(base_ + kStack) - 20;
    for (int i = 0; i < 20; ++i) top[i] = 0;
    top[11] = reinterpret_cast<uint64_t>(begin);  // x30: where ret goes
    context->top = top;
#else
    getcontext(&context->saved);
    context->saved.uc_stack.ss_sp = base_, context->saved.uc_stack.ss_size = kStack, context->saved.uc_link = nullptr;
    makecontext(&context->saved, begin, 0);
#endif
  }

 private:
  char* base_;
};

inline void arrive([[maybe_unused]] Context* self, [[maybe_unused]] Context* from) {
#if FD_ASAN
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(self->fake, &bottom, &bytes);
  if (!from->bottom) from->bottom = bottom, from->bytes = bytes;  // the scheduler's stack is the program's
#endif
}

inline void go(Context* from, Context* to) {
#if FD_ASAN
  __sanitizer_start_switch_fiber(&from->fake, to->bottom, to->bytes);
#endif
#if defined(__x86_64__) || defined(__aarch64__)
  fd_switch(&from->top, to->top);
#else
  swapcontext(&from->saved, &to->saved);
#endif
  arrive(from, to);
}

}  // namespace emulated
}  // namespace fastdecode
