// Threads that walk a list of tasks together.
//
// A task is done when its units are done, not when every thread has arrived: units are claimed one
// by one, so a thread that sleeps or was descheduled holds nobody up, and the caller alone can
// finish a run. Waits spin a few microseconds, then yield, then sleep: on a busy machine a waiting
// thread gives its core away.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace sdk {

class Pool {
 public:
  // Does unit `unit` of task `task` on thread `thread`.
  using Work = void (*)(void *owner, int64_t task, int64_t unit, int thread);
  // Called on the caller's thread when `task` is done; may be null.
  using Done = void (*)(void *owner, int64_t task);

  // units: of each task, fewer than 2^32 each. Throws std::system_error if no thread can start.
  Pool(int threads, std::vector<int64_t> units, void *owner, Work work, Done done);
  ~Pool();
  Pool(const Pool &) = delete;
  Pool &operator=(const Pool &) = delete;

  // Every unit of every task, tasks in order. One caller at a time.
  void run();

  // Whether this process is a fork of the one with the threads: then run() works alone, and the
  // pool must not be destroyed (its threads are not here to be joined or woken).
  bool forked() const;

 private:
  // Counters carry the run's number in their upper half: a thread that wakes up late sees that its
  // run is over and touches nothing.
  struct alignas(64) Task {
    std::atomic<uint64_t> finished{0};
    uint64_t units = 0;
  };
  // How many units of one thread's share of one task are claimed. A thread does its own share first
  // and helps the others then: from task to task it meets the data that it has made itself.
  struct alignas(64) Share {
    std::atomic<uint64_t> claimed{0};
  };

  void walk(uint32_t run, int thread);
  void worker(int thread);
  bool wait_for_run(uint32_t &seen);
  void stop();

  void *owner_;
  Work work_;
  Done done_;
  std::unique_ptr<Task[]> tasks_;
  int64_t count_;
  uint64_t share_count_;  // of a task
  std::unique_ptr<Share[]> shares_;  // [tasks, share_count]
  alignas(64) std::atomic<uint32_t> run_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  long process_;
  std::vector<std::thread> threads_;
};

}  // namespace sdk
