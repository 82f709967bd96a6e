// The team of threads. Our own rather than OpenMP's: it survives fork, knows affinity and container
// quotas, brings no second runtime into the process, and is what a captured step replays on.
//
// Members spin for a short while after a job (the next kernel is usually microseconds away), then
// sleep on a condition variable. One caller owns the team at a time; nested calls and other callers
// run alone.
//
// The system now and then wakes a worker on the core of its caller and leaves both there for up to
// a tenth of a second, in which each waits for the other by the time slice (a step of 0.9 ms
// takes 2.2, or 17). So members note where they run, and a worker that finds another on its core
// moves away.
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>

#include "runtime.h"

namespace gs {

namespace {

constexpr int kMaxThreads = 256;
constexpr int kMemberBits = 16;
constexpr long kSpinNanoseconds = 60000;
constexpr long kMoveNanoseconds = 1000000;  // a worker changes its core at most so often

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

long now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000L + t.tv_nsec;
}

struct Barrier {
  alignas(64) std::atomic<int> arrived;
  alignas(64) std::atomic<int> phase;
};

struct Team {
  pthread_mutex_t mutex;
  pthread_cond_t wake;
  int started;  // workers alive, not counting the caller
  // Rises with each job; the low bits are its number of members. A worker that the job does not
  // count in reads nothing else of it, so the next job may be set up while that worker is still
  // waking.
  alignas(64) std::atomic<uint64_t> job;
  alignas(64) std::atomic<int> pending;  // members that have not finished the job
  std::atomic<int> sleepers;
  TeamFn fn;
  void* arg;
  Barrier barrier;
  alignas(64) std::atomic<bool> owned;
  alignas(64) std::atomic<int> core[kMaxThreads];  // where each member was last seen
};

// Reached through a pointer so that a forked child, which has no workers, can forget it whole.
Team* team = nullptr;
std::atomic<int> threads_wanted{0};
std::atomic<uint64_t> moves{0};
thread_local bool inside = false;
thread_local int self = 0;  // the number in the team

Team* new_team() {
  void* p = nullptr;
  if (posix_memalign(&p, 64, sizeof(Team)) != 0) abort();
  memset(p, 0, sizeof(Team));
  Team* t = (Team*)p;
  for (auto& core : t->core) core.store(-1);
  pthread_mutex_init(&t->mutex, nullptr);
  pthread_cond_init(&t->wake, nullptr);
  return t;
}

// Notes the core that this member runs on, and moves a worker that shares it with one of the job's
// other members to a core of its own, if its affinity has one. The affinity itself stays.
void spread(Team* t, int nt) {
#if defined(__linux__)
  int here = sched_getcpu();
  if (t->core[self].load(std::memory_order_relaxed) != here)
    t->core[self].store(here, std::memory_order_relaxed);
  if (self == 0) return;
  bool shared = false;
  for (int i = 0; i < nt; ++i)
    shared |= i != self && t->core[i].load(std::memory_order_relaxed) == here;
  if (!shared) return;
  static thread_local long last = 0;
  long now = now_ns();
  if (now - last < kMoveNanoseconds) return;
  last = now;
  cpu_set_t allowed, vacant;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  vacant = allowed;
  for (int i = 0; i < nt; ++i) {
    int core = t->core[i].load(std::memory_order_relaxed);
    if (i != self && core >= 0 && core < CPU_SETSIZE) CPU_CLR(core, &vacant);
  }
  if (CPU_COUNT(&vacant) == 0 || sched_setaffinity(0, sizeof(vacant), &vacant) != 0) return;
  sched_setaffinity(0, sizeof(allowed), &allowed);
  t->core[self].store(sched_getcpu(), std::memory_order_relaxed);
  moves.fetch_add(1, std::memory_order_relaxed);
#else
  (void)t, (void)nt;
#endif
}

// Waits for other members of the job. Who waits long gives its core away, so a team larger than the
// machine still moves.
template <class Done>
void wait_long(Done done, int nt) {
  for (int n = 0; !done(); ++n) {
    if (n < 2000) {
      pause_cpu();
    } else {
      if (n == 2000) spread(team, nt);
      sched_yield();
    }
  }
}

struct WorkerArg {
  Team* team;
  int tid;
  uint64_t seen;
};

void* worker(void* p) {
  WorkerArg a = *(WorkerArg*)p;
  free(p);
  Team* t = a.team;
  uint64_t seen = a.seen;
  inside = true;
  self = a.tid;
  for (;;) {
    long deadline = 0;
    int n = 0;
    while (t->job.load(std::memory_order_acquire) == seen) {
      pause_cpu();
      if ((++n & 63) == 0) {
        long now = now_ns();
        if (deadline == 0) deadline = now + kSpinNanoseconds;
        if (now > deadline) {
          pthread_mutex_lock(&t->mutex);
          t->sleepers.fetch_add(1);
          while (t->job.load() == seen) pthread_cond_wait(&t->wake, &t->mutex);
          t->sleepers.fetch_sub(1);
          pthread_mutex_unlock(&t->mutex);
        }
      }
    }
    seen = t->job.load(std::memory_order_acquire);
    int nt = (int)(seen & ((1u << kMemberBits) - 1));
    if (a.tid < nt) {
      spread(t, nt);
      t->fn(t->arg, a.tid, nt, &t->barrier);
      t->pending.fetch_sub(1, std::memory_order_release);
    }
  }
  return nullptr;
}

void after_fork_in_child() {
  team = nullptr;  // its workers are gone; the memory is left behind on purpose
  inside = false;
}

// Processors' worth of time that the control group in this folder grants, version 2 or 1; 0 for no
// limit.
double quota_of(const std::string& folder) {
  double quota = -1, period = 0;
  if (FILE* f = fopen((folder + "/cpu.max").c_str(), "r")) {
    char q[64];
    if (fscanf(f, "%63s %lf", q, &period) == 2 && strcmp(q, "max") != 0) quota = atof(q);
    fclose(f);
  } else if ((f = fopen((folder + "/cpu.cfs_quota_us").c_str(), "r"))) {
    if (fscanf(f, "%lf", &quota) != 1) quota = -1;
    fclose(f);
    if ((f = fopen((folder + "/cpu.cfs_period_us").c_str(), "r"))) {
      if (fscanf(f, "%lf", &period) != 1) period = 0;
      fclose(f);
    }
  }
  return quota > 0 && period > 0 ? quota / period : 0;
}

// The least of the quotas of this process's control group and of those around it. A container sees
// its own as the root; a service of systemd, or a process that was put into a group, finds it in
// /proc/self/cgroup.
int read_quota() {
  double least = 0;
  auto take = [&](const std::string& folder) {
    double q = quota_of(folder);
    if (q > 0 && (least == 0 || q < least)) least = q;
  };
  take("/sys/fs/cgroup");
  take("/sys/fs/cgroup/cpu");
  if (FILE* f = fopen("/proc/self/cgroup", "r")) {
    char line[4096];  // number:controllers:path
    while (fgets(line, sizeof line, f)) {
      char* kind = strchr(line, ':');
      char* path = kind ? strchr(kind + 1, ':') : nullptr;
      if (!path) continue;
      *path++ = 0;
      path[strcspn(path, "\n")] = 0;
      std::string root = "/sys/fs/cgroup";
      if (kind[1]) {  // version 1: the group of the controller "cpu" alone
        if ((std::string(",") + (kind + 1) + ",").find(",cpu,") == std::string::npos) continue;
        root += "/cpu";
      }
      std::string below = path;
      while (below.size() > 1) {
        take(root + below);
        below.resize(below.rfind('/') == std::string::npos ? 0 : below.rfind('/'));
      }
    }
    fclose(f);
  }
  if (least == 0) return 0;
  return least < 1 ? 1 : (int)least;
}

int positive_env(const char* name) {
  const char* s = getenv(name);
  if (!s || !*s) return 0;
  char* end;
  long v = strtol(s, &end, 10);
  return (*end == 0 && v > 0) ? (int)(v < kMaxThreads ? v : kMaxThreads) : 0;
}

}  // namespace

CpuBudget cpu_budget() {
  CpuBudget b{};
  b.cores = (int)std::thread::hardware_concurrency();
  if (b.cores < 1) b.cores = 1;
  b.affinity = b.cores;
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) b.affinity = CPU_COUNT(&set);
#endif
  b.quota = read_quota();
  b.chosen = b.affinity;
  b.reason = "affinity";
  if (b.quota > 0 && b.quota < b.chosen) {
    b.chosen = b.quota;
    b.reason = "container quota";
  }
  if (int n = positive_env("GRADSMITH_NUM_THREADS")) {
    b.chosen = n;
    b.reason = "GRADSMITH_NUM_THREADS";
  } else if (int m = positive_env("OMP_NUM_THREADS")) {
    b.chosen = m < b.chosen ? m : b.chosen;
    b.reason = "OMP_NUM_THREADS";
  }
  if (b.chosen > kMaxThreads) b.chosen = kMaxThreads;
  return b;
}

int get_num_threads() {
  int n = threads_wanted.load(std::memory_order_relaxed);
  if (n == 0) {
    n = cpu_budget().chosen;
    threads_wanted.store(n);
  }
  return n;
}

uint64_t team_moves() { return moves.load(std::memory_order_relaxed); }

void set_num_threads(int n) {
  threads_wanted.store(n < 1 ? 1 : (n > kMaxThreads ? kMaxThreads : n));
}

// Central barrier: the last to arrive opens the next phase.
void team_barrier_wait(void* p, int nt) {
  Barrier* b = (Barrier*)p;
  int phase = b->phase.load(std::memory_order_relaxed);
  if (b->arrived.fetch_add(1, std::memory_order_acq_rel) == nt - 1) {
    b->arrived.store(0, std::memory_order_relaxed);
    b->phase.store(phase + 1, std::memory_order_release);
    return;
  }
  wait_long([&] { return b->phase.load(std::memory_order_acquire) != phase; }, nt);
}

void run_team(int nt, TeamFn fn, void* arg) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, [] { pthread_atfork(nullptr, nullptr, after_fork_in_child); });
  if (nt <= 1 || inside) {
    fn(arg, 0, 1, nullptr);
    return;
  }
  static pthread_mutex_t creation = PTHREAD_MUTEX_INITIALIZER;
  if (!team) {
    if (pthread_mutex_trylock(&creation) != 0) {
      fn(arg, 0, 1, nullptr);
      return;
    }
    if (!team) team = new_team();
    pthread_mutex_unlock(&creation);
  }
  Team* t = team;
  bool expected = false;
  if (!t->owned.compare_exchange_strong(expected, true, std::memory_order_acquire)) {
    fn(arg, 0, 1, nullptr);
    return;
  }
  if (nt > kMaxThreads) nt = kMaxThreads;
  while (t->started < nt - 1) {
    WorkerArg* a = (WorkerArg*)malloc(sizeof(WorkerArg));
    pthread_t id;
    pthread_attr_t attr;
    if (!a) break;
    *a = WorkerArg{t, t->started + 1, t->job.load()};
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    int failed = pthread_create(&id, &attr, worker, a);
    pthread_attr_destroy(&attr);
    if (failed) {
      free(a);
      break;
    }
    ++t->started;
  }
  if (t->started < nt - 1) nt = t->started + 1;  // the system refused a thread
  t->fn = fn;
  t->arg = arg;
  spread(t, nt);
  t->barrier.arrived.store(0);
  t->pending.store(nt - 1, std::memory_order_relaxed);
  // Sequentially consistent: a worker going to sleep either sees the job or is seen.
  t->job.store((((t->job.load() >> kMemberBits) + 1) << kMemberBits) | (uint64_t)nt);
  if (t->sleepers.load() > 0) {
    pthread_mutex_lock(&t->mutex);
    pthread_cond_broadcast(&t->wake);
    pthread_mutex_unlock(&t->mutex);
  }
  inside = true;
  fn(arg, 0, nt, &t->barrier);
  inside = false;
  wait_long([&] { return t->pending.load(std::memory_order_acquire) == 0; }, nt);
  t->owned.store(false, std::memory_order_release);
}

}  // namespace gs
