// Normalisation of the channels of each position, where it is positions that lie side by side: a row is those of one
// channel, and each column has its statistics.
#include "norm_across.h"
#include "norm_kernels.h"
#include "norm_moments.h"
#include "norm_parts.h"
#include "norm_sums.h"

namespace film::FILM_ISA {
namespace {

constexpr Along kAlong{true, false};

// All channels of some columns of a sample: a tile, which stays in the cache while it is looked at again.
struct Tiles {
  int64_t width, of_sample, positions;

  explicit Tiles(const NormProblem& p) : positions(p.positions) {
    constexpr int64_t kElements = 32768, kLeast = 16, kMost = 512;
    width = std::min(positions, std::clamp<int64_t>(kElements / p.channels / kLeast * kLeast, kLeast, kMost));
    of_sample = (positions + width - 1) / width;
  }
  int64_t sample(int64_t tile) const { return tile / of_sample; }
  int64_t first(int64_t tile) const { return tile % of_sample * width; }
  int64_t columns(int64_t tile) const { return std::min(width, positions - first(tile)); }
  StoredRows stored(const Cube& cube, int64_t tile, int64_t channel) const {
    return {cube.data, sample(tile) * cube.n + channel * cube.c + first(tile), cube.c};
  }
};

// Copies a tile into memory where its rows lie side by side: in their own they can be so many bytes apart that a cache
// has no place for them.
template <class A>
Rows<const A> gathered(const StoredRows& from, DType dtype, int64_t rows, int64_t columns, A* scratch) {
  with_storage<A>(dtype, [&](auto element) {
    using T = decltype(element);
    const T* source = static_cast<const T*>(from.data) + from.offset;
    for (int64_t r = 0; r < rows; ++r) widen_copy(scratch + r * columns, source + r * from.pitch, columns);
  });
  return {scratch, columns};
}

// What a thread works in: tiles, and numbers for each of their columns.
template <class A>
struct TileWorker {
  Scratch<A> x, d, grad, product, out, mean, rstd, all, along, constant, slope;
  std::vector<double> means, squares;

  TileWorker(const NormProblem& p, const Tiles& tiles, bool backward)
      : x(p.channels * tiles.width),
        d(backward ? p.channels * tiles.width : 0),
        grad(block_rows(tiles.width) * tiles.width),
        product(block_rows(tiles.width) * tiles.width),
        out(block_rows(tiles.width) * tiles.width),
        mean(tiles.width),
        rstd(tiles.width),
        all(tiles.width),
        along(tiles.width),
        constant(tiles.width),
        slope(tiles.width),
        means(tiles.width),
        squares(tiles.width) {
    std::fill_n(static_cast<A*>(mean), tiles.width, A(0));
  }
};

// Gathers a tile, and finds the statistics of its columns on the way: into worker.mean and worker.squares.
template <class A>
Rows<const A> measured(const NormProblem& p, const Tiles& tiles, const Cube& cube, int64_t tile,
                       TileWorker<A>& worker) {
  const int64_t columns = tiles.columns(tile);
  const Rows<const A> x{worker.x, columns};
  A* sums = worker.all;
  std::fill_n(sums, columns, A(0));
  std::fill_n(worker.squares.data(), columns, 0);
  for (int64_t c = 0; c < p.channels; c += kChain) {
    const int64_t rows = std::min(kChain, p.channels - c);
    const Rows<const A> some = gathered<A>(tiles.stored(cube, tile, c), p.dtype, rows, columns, worker.x + c * columns);
    if (p.takes_mean()) {
      add_columns<A, false>(rows, columns, some, sums);
    } else {
      add_columns<A, true>(rows, columns, some, sums);
      move_sums(columns, sums, worker.squares.data());
    }
  }
  if (!p.takes_mean()) return x;
  column_moments<A>(p.channels, columns, x, sums, worker.means.data(), worker.squares.data());
  for (int64_t c = 0; c < columns; ++c) worker.mean[c] = static_cast<A>(worker.means[c]);
  return x;
}

// Calls body(channel, how many) for some rows of a tile after others.
template <class Body>
void in_rows(int64_t channels, int64_t columns, const Body& body) {
  const int64_t most = block_rows(columns);
  for (int64_t c = 0; c < channels; c += most) body(c, std::min(most, channels - c));
}

}  // namespace

template <class A>
void forward_across_planes(const NormProblem& p, const NormForwardArgs& args) {
  const Tiles tiles(p);
  const FactorTable<A> table(p, args.by);
  const Affine<A> affine(p, table, false);
  const Kept<A> kept(p, args.statistics);
  const Modulate<A> modulate = modulate_of<A>(p.activation, kAlong, p.position);

  share(p.batch * tiles.of_sample, p.elements(), [&](int64_t begin, int64_t end) {
    TileWorker<A> worker(p, tiles, false);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t n = tiles.sample(tile), columns = tiles.columns(tile), first = n * p.positions + tiles.first(tile);
      const Rows<const A> x = measured(p, tiles, args.input, tile, worker);
      for (int64_t c = 0; c < columns; ++c) {
        const double second =
            p.norm == Norm::l2 ? std::sqrt(worker.squares[c]) : worker.squares[c] / static_cast<double>(p.channels);
        if (p.takes_mean()) kept.mean[first + c] = worker.mean[c];
        kept.second[first + c] = static_cast<A>(second);
        worker.rstd[c] = static_cast<A>(rstd_of(p, second));
      }
      in_rows(p.channels, columns, [&](int64_t channel, int64_t rows) {
        const StoredRows to = tiles.stored(args.output, tile, channel);
        const Rows<A> y = target<A>(to, p.dtype, columns, worker.out);
        modulate({rows, columns, {x.row(channel), x.pitch}, affine.with(n, channel, worker.mean, worker.rstd)},
                 p.lower_slope, y, soon(to, p.dtype));
        narrow_rows(to, p.dtype, rows, columns, y);
      });
    }
  });
}

template <class A>
void backward_across_planes(const NormProblem& p, const NormBackwardArgs& args) {
  const Tiles tiles(p);
  const FactorTable<A> table(p, args.by);
  const Affine<A> affine(p, table, true);
  const Kept<A> kept(p, const_cast<void*>(args.statistics));
  const SumKinds kinds(p, args);
  ChannelSums sums(p, tiles.of_sample, true, kinds.count());
  const Slope<A> slope = slope_of<A>(p.activation, kAlong, kinds.post);

  share(p.batch * tiles.of_sample, p.elements(), [&](int64_t begin, int64_t end) {
    TileWorker<A> worker(p, tiles, true);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t n = tiles.sample(tile), columns = tiles.columns(tile), first = n * p.positions + tiles.first(tile);
      const Rows<const A> x = gathered<A>(tiles.stored(args.input, tile, 0), p.dtype, p.channels, columns, worker.x);
      for (int64_t c = 0; c < columns; ++c) {
        if (p.takes_mean()) worker.mean[c] = kept.mean[first + c];
        worker.rstd[c] = static_cast<A>(rstd_of(p, kept.second[first + c]));
        worker.all[c] = worker.along[c] = 0;
        worker.means[c] = worker.squares[c] = 0;
      }
      const auto pass_of = [&](int64_t channel, int64_t rows) {
        return RowPass<A>{rows, columns, {x.row(channel), x.pitch}, affine.with(n, channel, worker.mean, worker.rstd)};
      };
      in_rows(p.channels, columns, [&](int64_t channel, int64_t rows) {
        const Rows<const A> grad =
            widened<A>(tiles.stored(args.grad, tile, channel), p.dtype, rows, columns, worker.grad);
        A* d = worker.d + channel * columns;
        const RowPass<A> pass = pass_of(channel, rows);
        slope(pass, p.lower_slope, grad, {d, columns}, {worker.product, columns}, nullptr);
        sum_backward<A, true, false>(pass, {d, columns}, affine.of_z(n, channel),
                                     {sums.of_part(tile, 0) + channel, sums.of_part(tile, 1) + channel,
                                      kinds.of_z ? sums.of_part(tile, 2) + channel : nullptr, affine.weight(n, channel),
                                      worker.all, worker.along});
        move_sums<A>(columns, worker.all, worker.means.data());
        move_sums<A>(columns, worker.along, worker.squares.data());
        if (!kinds.post) return;
        add_rows<A>(rows, columns, grad, sums.of_part(tile, 2) + channel);
        add_rows<A>(rows, columns, {worker.product, columns}, sums.of_part(tile, 3) + channel);
      });
      if (args.grad_input.data == nullptr) continue;
      for (int64_t c = 0; c < columns; ++c)
        set_terms<A>(p, kept.second[first + c], worker.rstd[c], worker.means[c], worker.squares[c], worker.constant + c,
                     worker.slope + c);
      in_rows(p.channels, columns, [&](int64_t channel, int64_t rows) {
        const StoredRows to = tiles.stored(args.grad_input, tile, channel);
        const Rows<A> dx = target<A>(to, p.dtype, columns, worker.out);
        grad_input_rows<A, true, false>(pass_of(channel, rows), {worker.d + channel * columns, columns},
                                        {affine.weight_of_dx(p, n, channel), worker.constant, worker.slope}, dx);
        narrow_rows(to, p.dtype, rows, columns, dx);
      });
    }
  });
  share(p.batch, p.elements(), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) sums.add_up(n);
  });
  finish_factors(p, args, table, sums.all());
}

template void forward_across_planes<float>(const NormProblem&, const NormForwardArgs&);
template void forward_across_planes<double>(const NormProblem&, const NormForwardArgs&);
template void backward_across_planes<float>(const NormProblem&, const NormBackwardArgs&);
template void backward_across_planes<double>(const NormProblem&, const NormBackwardArgs&);

}  // namespace film::FILM_ISA
