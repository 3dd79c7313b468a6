// Normalisation of the channels of each position ("channel", "rms", "l2"): all that a position needs is at hand at once,
// so that there is one pass over memory each way.
#include "norm_kernels.h"
#include "norm_parts.h"
#include "norm_sums.h"

namespace film::FILM_ISA {
namespace {

// Where channels lie side by side, statistics are of rows; else of columns.
constexpr Along kOfRows{false, true}, kOfColumns{true, false};

// scale and shift of v, without rstd; and what dx multiplies d with.
template <class A>
class Affine {
 public:
  Affine(const NormProblem& p, const FactorTable<A>& table)
      : channels_(p.channels), factors_(p.batch * p.channels), weight_(p.batch * p.channels) {
    for (int64_t n = 0; n < p.batch; ++n)
      for (int64_t c = 0; c < p.channels; ++c) {
        factors_.set(n * p.channels + c, {p.position, table, n, c}, 0, 0, 1);
        weight_[n * p.channels + c] = table.gamma(n)[c] * table.weight()[c];
      }
  }
  RowFactors<A> with(int64_t n, int64_t channel, const A* mean, const A* rstd) const {
    RowFactors<A> by = factors_.from(n * channels_ + channel);
    by.mean = mean, by.rstd = rstd;
    return by;
  }
  const A* weight(int64_t n, int64_t channel) const { return weight_ + n * channels_ + channel; }

 private:
  int64_t channels_;
  AffineTable<A> factors_;
  Scratch<A> weight_;
};

// The statistics as they are kept.
template <class A>
struct Kept {
  A *mean, *second;  // mean is null where it is not taken

  Kept(const NormProblem& p, void* data)
      : mean(p.takes_mean() ? static_cast<A*>(data) : nullptr),
        second(static_cast<A*>(data) + (p.takes_mean() ? p.statistics() : 0)) {}
};

// constant and slope of dx at a position, from the sums over its channels.
template <class A>
void set_terms(const NormProblem& p, A second, A rstd, double all, double along, A* constant, A* slope) {
  const double size = p.norm == Norm::l2 ? 1 : static_cast<double>(p.channels);
  *constant = p.takes_mean() ? static_cast<A>(rstd * all / size) : A(0);
  // A length below eps does not count, and so has no derivative.
  *slope = p.norm == Norm::l2 && second < static_cast<A>(p.eps) ? A(0) : static_cast<A>(rstd * along / size);
}

}  // namespace

template <class A>
void forward_across_pixels(const NormProblem& p, const NormForwardArgs& args) {
  const Parts parts(p);
  const FactorTable<A> table(p, args.by);
  const Affine<A> affine(p, table);
  const Kept<A> kept(p, args.statistics);
  const Modulate<A> modulate = modulate_of<A>(p.activation, kOfRows, p.position);
  const int64_t C = p.channels, most = block_rows(C);

  share(p.batch * parts.of_sample, p.elements(), [&](int64_t begin, int64_t end) {
    const PartWorker<A> worker(most, C);
    const Scratch<A> mean(most), rstd(most);
    std::fill_n(static_cast<A*>(mean), most, A(0));
    for (int64_t i = begin; i < end; ++i)
      parts.part(i).in_blocks(C, [&](const Part& some) {
        const Rows<const A> x = widened<A>(parts.stored(args.input, some), p.dtype, some.rows, C, worker.x);
        for (int64_t r = 0; r < some.rows; ++r) {
          const int64_t at = some.n * p.positions + some.first + r;
          double second;
          if (p.takes_mean()) {
            const Moments moments = moments_of<A>(1, C, {x.row(r), C});
            kept.mean[at] = mean[r] = static_cast<A>(moments.mean);
            second = moments.squares / moments.count;
          } else {
            const double squares = squares_of<A>(C, x.row(r));
            second = p.norm == Norm::rms ? squares / C : std::sqrt(squares);
          }
          kept.second[at] = static_cast<A>(second);
          rstd[r] = static_cast<A>(rstd_of(p, second));
        }
        const StoredRows to = parts.stored(args.output, some);
        const Rows<A> y = target<A>(to, p.dtype, C, worker.out);
        modulate({some.rows, C, x, affine.with(some.n, 0, mean, rstd)}, p.lower_slope, y);
        narrow_rows(to, p.dtype, some.rows, C, y);
      });
  });
}

template <class A>
void backward_across_pixels(const NormProblem& p, const NormBackwardArgs& args) {
  const Parts parts(p);
  const FactorTable<A> table(p, args.by);
  const Affine<A> affine(p, table);
  const Kept<A> kept(p, const_cast<void*>(args.statistics));
  const bool post = p.position == Position::post && (args.grad_gamma != nullptr || args.grad_beta != nullptr);
  ChannelSums sums(p, parts.of_sample, true, post);
  const Slope<A> slope = slope_of<A>(p.activation, kOfRows, post);
  const int64_t C = p.channels, most = block_rows(C);

  share(p.batch * parts.of_sample, p.elements(), [&](int64_t begin, int64_t end) {
    const PartWorker<A> worker(most, C);
    const Scratch<A> mean(most), rstd(most), constant(most), slope_of_xhat(most);
    std::vector<double> all(most), along(most);
    std::fill_n(static_cast<A*>(mean), most, A(0));
    for (int64_t i = begin; i < end; ++i) {
      parts.part(i).in_blocks(C, [&](const Part& some) {
        const int64_t first = some.n * p.positions + some.first;
        for (int64_t r = 0; r < some.rows; ++r) {
          if (p.takes_mean()) mean[r] = kept.mean[first + r];
          rstd[r] = static_cast<A>(rstd_of(p, kept.second[first + r]));
        }
        const RowPass<A> pass{some.rows, C,
                              widened<A>(parts.stored(args.input, some), p.dtype, some.rows, C, worker.x),
                              affine.with(some.n, 0, mean, rstd)};
        const Rows<const A> grad = widened<A>(parts.stored(args.grad, some), p.dtype, some.rows, C, worker.grad);
        slope(pass, p.lower_slope, grad, {worker.d, C}, {worker.product, C});
        std::fill_n(all.data(), most, 0);
        std::fill_n(along.data(), most, 0);
        sum_backward<A, false, true>(
            pass, {worker.d, C},
            {worker.sum(0), worker.sum(1), affine.weight(some.n, 0), all.data(), along.data()});
        if (post) {
          add_columns<A>(some.rows, C, grad, worker.sum(2));
          add_columns<A>(some.rows, C, {worker.product, C}, worker.sum(3));
        }
        for (int k = 0; k < (post ? 4 : 2); ++k) move_sums(C, worker.sum(k), sums.of_part(i, k));
        if (args.grad_input.data == nullptr) return;
        for (int64_t r = 0; r < some.rows; ++r)
          set_terms<A>(p, kept.second[first + r], rstd[r], all[r], along[r], constant + r, slope_of_xhat + r);
        const StoredRows to = parts.stored(args.grad_input, some);
        const Rows<A> dx = target<A>(to, p.dtype, C, worker.out);
        grad_input_rows<A, false, true>(pass, {worker.d, C}, {affine.weight(some.n, 0), constant, slope_of_xhat}, dx);
        narrow_rows(to, p.dtype, some.rows, C, dx);
      });
    }
  });
  share(p.batch, p.elements(), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) sums.add_up(n);
  });
  finish_factors(p, args, table, sums.all());
}

namespace {

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

// The statistics of a tile's columns, into worker.mean and worker.squares.
template <class A>
void measure(const NormProblem& p, Rows<const A> x, int64_t columns, TileWorker<A>& worker) {
  if (!p.takes_mean())
    return column_moments<A, true>(p.channels, columns, x, nullptr, nullptr, worker.squares.data());
  A* sums = worker.all;
  std::fill_n(sums, columns, A(0));
  add_columns<A>(p.channels, columns, x, sums);
  column_moments<A, false>(p.channels, columns, x, sums, worker.means.data(), worker.squares.data());
  for (int64_t c = 0; c < columns; ++c) worker.mean[c] = static_cast<A>(worker.means[c]);
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
  const Affine<A> affine(p, table);
  const Kept<A> kept(p, args.statistics);
  const Modulate<A> modulate = modulate_of<A>(p.activation, kOfColumns, p.position);

  share(p.batch * tiles.of_sample, p.elements(), [&](int64_t begin, int64_t end) {
    TileWorker<A> worker(p, tiles, false);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t n = tiles.sample(tile), columns = tiles.columns(tile), first = n * p.positions + tiles.first(tile);
      const Rows<const A> x = gathered<A>(tiles.stored(args.input, tile, 0), p.dtype, p.channels, columns, worker.x);
      measure(p, x, columns, worker);
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
                 p.lower_slope, y);
        narrow_rows(to, p.dtype, rows, columns, y);
      });
    }
  });
}

template <class A>
void backward_across_planes(const NormProblem& p, const NormBackwardArgs& args) {
  const Tiles tiles(p);
  const FactorTable<A> table(p, args.by);
  const Affine<A> affine(p, table);
  const Kept<A> kept(p, const_cast<void*>(args.statistics));
  const bool post = p.position == Position::post && (args.grad_gamma != nullptr || args.grad_beta != nullptr);
  ChannelSums sums(p, tiles.of_sample, true, post);
  const Slope<A> slope = slope_of<A>(p.activation, kOfColumns, post);

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
        slope(pass, p.lower_slope, grad, {d, columns}, {worker.product, columns});
        sum_backward<A, true, false>(pass, {d, columns},
                                     {sums.of_part(tile, 0) + channel, sums.of_part(tile, 1) + channel,
                                      affine.weight(n, channel), worker.all, worker.along});
        move_sums<A>(columns, worker.all, worker.means.data());
        move_sums<A>(columns, worker.along, worker.squares.data());
        if (!post) return;
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
                                        {affine.weight(n, channel), worker.constant, worker.slope}, dx);
        narrow_rows(to, p.dtype, rows, columns, dx);
      });
    }
  });
  share(p.batch, p.elements(), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) sums.add_up(n);
  });
  finish_factors(p, args, table, sums.all());
}

template void forward_across_pixels<float>(const NormProblem&, const NormForwardArgs&);
template void forward_across_pixels<double>(const NormProblem&, const NormForwardArgs&);
template void backward_across_pixels<float>(const NormProblem&, const NormBackwardArgs&);
template void backward_across_pixels<double>(const NormProblem&, const NormBackwardArgs&);
template void forward_across_planes<float>(const NormProblem&, const NormForwardArgs&);
template void forward_across_planes<double>(const NormProblem&, const NormForwardArgs&);
template void backward_across_planes<float>(const NormProblem&, const NormBackwardArgs&);
template void backward_across_planes<double>(const NormProblem&, const NormBackwardArgs&);

}  // namespace film::FILM_ISA
