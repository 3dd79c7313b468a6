// Positions of a sample, some at a time, and what is summed over them for each channel.
#pragma once

#include <algorithm>
#include <vector>

#include "norm_factors.h"
#include "norm_schedule.h"
#include "norm_sums.h"

namespace film::FILM_ISA {

// Rows of channels that passes follow one another on, and that are summed without more digits.
inline int64_t block_rows(int64_t channels) { return std::clamp<int64_t>(kBlock / channels, 1, kChain); }

// Positions [first, first + rows) of sample n.
struct Part {
  int64_t n, first, rows;

  // Calls body for a block of them after another.
  template <class Body>
  void in_blocks(int64_t channels, const Body& body) const {
    for (int64_t r = 0; r < rows; r += block_rows(channels))
      body(Part{n, first + r, std::min(block_rows(channels), rows - r)});
  }
  // The same, and move() before a chain of additions, one for each position, grows longer than kChain, and at the end.
  template <class Body, class Move>
  void in_chains(int64_t channels, const Body& body, const Move& move) const {
    int64_t chain = 0;
    in_blocks(channels, [&](const Part& some) {
      if (chain + some.rows > kChain) move(), chain = 0;
      body(some);
      chain += some.rows;
    });
    if (chain > 0) move();
  }
};

// All positions, in parts: so large that what is kept for each channel of a part is little beside the part, and so
// small that it stays in the cache for a second look.
struct Parts {
  int64_t positions, rows, of_sample;

  explicit Parts(const NormProblem& p)
      : positions(p.positions),
        rows(std::min(positions, std::clamp<int64_t>(16384 / p.channels, 32, 256))),
        of_sample((positions + rows - 1) / rows) {}

  Part part(int64_t i) const {
    const int64_t first = i % of_sample * rows;
    return {i / of_sample, first, std::min(rows, positions - first)};
  }
  // The next one, or at the end of a sample the same.
  Part after(const Part& part) const {
    const int64_t first = part.first + part.rows;
    return first < positions ? Part{part.n, first, std::min(rows, positions - first)} : part;
  }
  StoredRows stored(const Cube& cube, const Part& part) const {
    return {cube.data, part.n * cube.n + part.first * cube.p, cube.p};
  }
};

// What a thread works in: so many rows, and numbers for each channel.
template <class A>
struct PartWorker {
  Scratch<A> x, grad, d, product, out, sums;
  Scratch<A> kept;  // d of a whole region, where that fits the cache
  int64_t channels;

  PartWorker(int64_t rows, int64_t channels, int64_t elements_kept = 0)
      : x(std::max(rows, block_rows(channels)) * channels),
        grad(block_rows(channels) * channels),
        d(block_rows(channels) * channels),
        product(block_rows(channels) * channels),
        out(block_rows(channels) * channels),
        sums(4 * channels),
        kept(elements_kept),
        channels(channels) {
    std::fill_n(sum(0), 4 * channels, A(0));
  }
  A* sum(int which) const { return sums + which * channels; }
};

// What backward sums for each channel: of a part, and of all of a sample in the end.
class ChannelSums {
 public:
  ChannelSums(const NormProblem& p, int64_t parts_of_sample, bool wanted, int kinds)
      : channels_(p.channels),
        of_sample_(parts_of_sample),
        kinds_(kinds),
        of_parts_(wanted ? p.batch * of_sample_ * kinds_ * channels_ : 0),
        all_(wanted ? kinds_ * p.batch * channels_ : 0),
        step_(p.batch * channels_) {}

  double* of_part(int64_t part, int which) { return of_parts_.data() + (part * kinds_ + which) * channels_; }

  // Adds up the parts of sample n.
  void add_up(int64_t n) {
    for (int which = 0; which < kinds_; ++which) {
      double* parts = of_part(n * of_sample_, which);
      add_by_halves(parts, of_sample_, kinds_ * channels_, channels_);
      if (of_sample_ > 0) std::copy_n(parts, channels_, all_.data() + which * step_ + n * channels_);
    }
  }
  double* d() { return all_.data(); }
  double* along() { return all_.data() + step_; }
  FactorSums all() { return {d(), along(), d() + 2 * step_, d() + 3 * step_}; }

 private:
  int64_t channels_, of_sample_;
  int kinds_;
  std::vector<double> of_parts_, all_;
  int64_t step_;
};

}  // namespace film::FILM_ISA
