#include "pool.h"

#include <chrono>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace sdk {
namespace {

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Backoff {
 public:
  void wait() {
    if (turns_ < kSpins) {
      relax();
    } else if (turns_ < kSpins + kYields) {
      std::this_thread::yield();
    } else {
      // Whoever is awaited has lost its core, for milliseconds as a rule.
      std::this_thread::sleep_for(std::chrono::microseconds(sleep_));
      if (sleep_ < kLongestSleep) sleep_ *= 2;
    }
    ++turns_;
  }
  bool patient() const { return turns_ >= kSpins + kYields; }

 private:
  static constexpr int kSpins = 1000, kYields = 50, kLongestSleep = 400;
  int turns_ = 0;
  int sleep_ = 50;  // microseconds
};

long process_id() {
#if defined(__unix__) || defined(__APPLE__)
  return static_cast<long>(getpid());
#else
  return 0;
#endif
}

uint64_t tagged(uint32_t run, uint64_t count) { return (static_cast<uint64_t>(run) << 32) | count; }
uint32_t tag(uint64_t value) { return static_cast<uint32_t>(value >> 32); }
uint64_t number(uint64_t value) { return value & 0xffffffffu; }

}  // namespace

Pool::Pool(int threads, std::vector<int64_t> units, void *owner, Work work, Done done)
    : owner_(owner),
      work_(work),
      done_(done),
      tasks_(new Task[units.size()]),
      count_(static_cast<int64_t>(units.size())),
      share_count_(static_cast<uint64_t>(threads)),
      shares_(new Share[units.size() * static_cast<size_t>(threads)]),
      process_(process_id()) {
  for (size_t i = 0; i < units.size(); ++i) tasks_[i].units = static_cast<uint64_t>(units[i]);
  try {
    for (int thread = 1; thread < threads; ++thread)
      threads_.emplace_back(&Pool::worker, this, thread);
  } catch (...) {
    stop();
    throw;
  }
}

Pool::~Pool() { stop(); }

bool Pool::forked() const { return process_id() != process_; }

void Pool::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (auto &thread : threads_) thread.join();
}

void Pool::run() {
  const uint32_t run = run_.load(std::memory_order_relaxed) + 1;
  for (int64_t i = 0; i < count_; ++i) {
    tasks_[i].finished.store(tagged(run, 0), std::memory_order_relaxed);
  }
  for (uint64_t i = 0; i < static_cast<uint64_t>(count_) * share_count_; ++i)
    shares_[i].claimed.store(tagged(run, 0), std::memory_order_relaxed);
  run_.store(run);  // sequentially consistent, as are sleepers_: one of the two sides sees the other
  if (!threads_.empty() && !forked() && sleepers_.load() > 0) {
    { std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
  }
  walk(run, 0);
}

void Pool::walk(uint32_t run, int thread) {
  for (int64_t i = 0; i < count_; ++i) {
    Task &task = tasks_[i];
    uint64_t mine = 0;
    for (uint64_t s = 0; s < share_count_; ++s) {
      const uint64_t whose = (static_cast<uint64_t>(thread) + s) % share_count_;
      const uint64_t first = task.units * whose / share_count_;
      const uint64_t size = task.units * (whose + 1) / share_count_ - first;
      auto &claimed = shares_[static_cast<uint64_t>(i) * share_count_ + whose].claimed;
      uint64_t claim = claimed.load(std::memory_order_acquire);
      while (tag(claim) == run && number(claim) < size) {
        if (!claimed.compare_exchange_weak(claim, claim + 1, std::memory_order_acq_rel)) continue;
        work_(owner_, i, static_cast<int64_t>(first + number(claim)), thread);
        ++mine;
        claim = claimed.load(std::memory_order_acquire);
      }
    }
    const uint64_t all = tagged(run, task.units);
    uint64_t finished = mine > 0 ? task.finished.fetch_add(mine, std::memory_order_acq_rel) + mine
                                 : task.finished.load(std::memory_order_acquire);
    for (Backoff backoff; finished != all;) {
      if (tag(finished) != run) return;
      backoff.wait();
      finished = task.finished.load(std::memory_order_acquire);
    }
    if (thread == 0 && done_ != nullptr) done_(owner_, i);
  }
}

bool Pool::wait_for_run(uint32_t &seen) {
  Backoff backoff;
  while (run_.load() == seen && !stop_.load(std::memory_order_relaxed)) {
    if (!backoff.patient()) {
      backoff.wait();
      continue;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, [&] { return run_.load() != seen || stop_.load(); });
    sleepers_.fetch_sub(1);
  }
  seen = run_.load();
  return !stop_.load();
}

void Pool::worker(int thread) {
  for (uint32_t seen = 0; wait_for_run(seen);) walk(seen, thread);
}

}  // namespace sdk
