// A progress bar on stderr: only on a terminal, only once something takes longer than a second, gone when it is done.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <utility>

namespace clary::command {

class Progress {
 public:
  explicit Progress(std::string label) : label_(std::move(label)), terminal_(isatty(STDERR_FILENO) == 1) {}
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() {
    if (shown_) std::fprintf(stderr, "\r%*s\r", kColumns, "");
  }

  // `share` of the work is done, 0 to 1. Cheap enough to call after every timed run.
  void update(double share) {
    if (!terminal_) return;
    const auto now = Clock::now();
    if (now - start_ < std::chrono::seconds(1) || (shown_ && now - drawn_ < std::chrono::milliseconds(100))) return;
    shown_ = true;
    drawn_ = now;
    const int filled = static_cast<int>(std::clamp(share, 0.0, 1.0) * kBar);
    const std::string bar =
        std::string(static_cast<size_t>(filled), '#') + std::string(static_cast<size_t>(kBar - filled), '.');
    const int label_width = kColumns - kBar - 10;
    std::fprintf(stderr, "\r%-*.*s [%s] %3.0f %%", label_width, label_width, label_.c_str(), bar.c_str(),
                 100 * std::clamp(share, 0.0, 1.0));
    std::fflush(stderr);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int kColumns = 79, kBar = 30;
  std::string label_;
  bool terminal_, shown_ = false;
  Clock::time_point start_ = Clock::now(), drawn_{};
};

}  // namespace clary::command
