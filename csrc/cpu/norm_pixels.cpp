// Normalisation of groups of channels where these lie side by side: a row is the channels of one position, and each
// column is summed by itself, over the positions of a sample ("group") or of all samples ("batch").
#include "norm_backward.h"
#include "norm_kernels.h"
#include "norm_moments.h"
#include "norm_parts.h"

namespace film::FILM_ISA {
namespace {

constexpr Along kAlong{true, true};

// Which samples and channels have statistics in common: a region is the samples of which some group takes positions.
struct Regions {
  int64_t count, samples, groups, group_channels;  // of a region: samples, groups; of a group: channels

  explicit Regions(const NormProblem& p)
      : count(p.norm == Norm::batch ? 1 : p.batch),
        samples(p.batch / count),
        groups(p.norm == Norm::batch   ? p.channels
               : p.norm == Norm::group ? p.groups
                                       : 1),
        group_channels(p.channels / groups) {}
};

// The statistics of each channel of a region: those of its group.
struct OfChannels {
  std::vector<double> mean, rstd;

  explicit OfChannels(int64_t channels) : mean(channels), rstd(channels) {}
  void set(int64_t first, int64_t count, double mean_of, double rstd_of) {
    std::fill_n(mean.data() + first, count, mean_of);
    std::fill_n(rstd.data() + first, count, rstd_of);
  }
  // Into the factors of all samples of a region.
  template <class A>
  void set_factors(const AffineTable<A>& factors, const Regions& regions, int64_t region) const {
    const int64_t channels = static_cast<int64_t>(mean.size());
    for (int64_t n = region * regions.samples; n < (region + 1) * regions.samples; ++n)
      factors.template set<true, true>(n * channels, channels, 0, {mean.data(), rstd.data()});
  }
};

// Moments of columns, one part after another added to them.
struct ColumnMoments {
  double count = 0;
  std::vector<double> mean, squares;

  explicit ColumnMoments(int64_t columns) : mean(columns), squares(columns) {}
  void add(int64_t rows, const double* other_mean, const double* other_squares) {
    const double total = count + rows, share = rows / total, weight = count * share;
    for (size_t c = 0; c < mean.size(); ++c) {
      const double step = other_mean[c] - mean[c];
      mean[c] += step * share;
      squares[c] += other_squares[c] + step * step * weight;
    }
    count = total;
  }
};

}  // namespace

template <class A>
void forward_of_pixels(const NormProblem& p, const NormForwardArgs& args) {
  const Regions regions(p);
  const Parts parts(p);
  const FactorTable<A> table(p, args.by);
  const AffineTable<A> factors(p, table, false);
  const Modulate<A> modulate = modulate_of<A>(p.activation, kAlong, p.position);
  const int64_t C = p.channels, of_region = regions.samples * parts.of_sample;
  const bool normalises = p.norm != Norm::none;
  const Scratch<double> moments(normalises ? p.batch * parts.of_sample * 2 * C : 0);  // of parts: means, squares
  A* statistics = static_cast<A*>(args.statistics);
  const int64_t count = p.statistics();

  const auto measure = [&](int64_t region, int64_t index, const PartWorker<A>& worker) {
    if (!normalises) return;
    const Part part = parts.part(region * of_region + index);
    const Rows<const A> x = widened<A>(parts.stored(args.input, part), p.dtype, part.rows, C, worker.x);
    std::fill_n(worker.sum(0), C, A(0));
    add_columns<A, false>(part.rows, C, x, worker.sum(0));
    double* mean = moments + (region * of_region + index) * 2 * C;
    column_moments<A>(part.rows, C, x, worker.sum(0), mean, mean + C,
                      soon(parts.stored(args.input, parts.after(part)), p.dtype));
  };
  const auto finish = [&](int64_t region) {
    OfChannels of_channels(C);
    if (!normalises) {
      of_channels.set(0, C, 0, 1);
      return of_channels.set_factors(factors, regions, region);
    }
    ColumnMoments columns(C);
    for (int64_t i = 0; i < of_region; ++i) {
      const double* mean = moments + (region * of_region + i) * 2 * C;
      columns.add(parts.part(region * of_region + i).rows, mean, mean + C);
    }
    for (int64_t g = 0; g < regions.groups; ++g) {
      const int64_t first = g * regions.group_channels;
      Moments all;
      for (int64_t c = first; c < first + regions.group_channels; ++c)
        all.add({columns.count, columns.mean[c], columns.squares[c]});
      const double variance = all.squares / all.count;
      statistics[region * regions.groups + g] = static_cast<A>(all.mean);
      statistics[count + region * regions.groups + g] = static_cast<A>(variance);
      of_channels.set(first, regions.group_channels, all.mean, rstd_of(p, variance));
    }
    of_channels.set_factors(factors, regions, region);
  };
  const auto apply = [&](int64_t region, int64_t index, const PartWorker<A>& worker) {
    parts.part(region * of_region + index).in_blocks(C, [&](const Part& some) {
      const StoredRows to = parts.stored(args.output, some);
      const Rows<A> y = target<A>(to, p.dtype, C, worker.out);
      const Rows<const A> x = widened<A>(parts.stored(args.input, some), p.dtype, some.rows, C, worker.x);
      modulate({some.rows, C, x, factors.from(some.n * C)}, p.lower_slope, y,
               soon(parts.stored(args.output, parts.after(some)), p.dtype));
      narrow_rows(to, p.dtype, some.rows, C, y);
    });
  };
  in_stages(
      Shares{regions.count, of_region, p.elements()}, [&] { return PartWorker<A>(parts.rows, C); }, [](int64_t) {},
      measure, finish, apply);
}

template <class A>
void backward_of_pixels(const NormProblem& p, const NormBackwardArgs& args) {
  const Regions regions(p);
  const Parts parts(p);
  const FactorTable<A> table(p, args.by);
  const int64_t C = p.channels, of_region = regions.samples * parts.of_sample;
  const AffineTable<A> factors(p, table, true);
  const GradInputTerms<A> terms(p);
  const SumKinds kinds(p, args);
  const bool normalises = p.norm != Norm::none, dx_wanted = args.grad_input.data != nullptr;
  const bool sums_wanted = args.sums_wanted() || normalises;
  ChannelSums sums(p, parts.of_sample, sums_wanted, kinds.count());
  const BackwardOfRows<A, true> backward(p, kinds.post);
  const A* statistics = static_cast<const A*>(args.statistics);
  const int64_t count = p.statistics();

  const bool keeps =
      normalises && dx_wanted && of_region * parts.rows * C <= kElementsKept && takes_whole_regions(regions.count);

  const auto rstd_in = [&](int64_t region, int64_t group) {
    return normalises ? rstd_of(p, statistics[count + region * regions.groups + group]) : 1;
  };
  const auto prepare = [&](int64_t region) {
    OfChannels of_channels(C);
    for (int64_t g = 0; g < regions.groups; ++g)
      of_channels.set(g * regions.group_channels, regions.group_channels,
                      normalises ? statistics[region * regions.groups + g] : 0, rstd_in(region, g));
    of_channels.set_factors(factors, regions, region);
    terms.clear(region * regions.samples * C, regions.samples * C);
  };
  const auto rows_of = [&](const Part& some) {
    const auto stored = [&](const Cube& cube) { return parts.stored(cube, some); };
    const auto soon_after = [&](const Cube& cube) { return soon(parts.stored(cube, parts.after(some)), p.dtype); };
    return BackwardRows<A>{some.rows,
                           C,
                           stored(args.input),
                           stored(args.grad),
                           stored(args.grad_input),
                           factors.from(some.n * C),
                           {soon_after(args.input), soon_after(args.grad)}};
  };
  const auto place = [&](int64_t region, const Part& some, const PartWorker<A>& worker) -> A* {
    return keeps ? worker.kept + ((some.n - region * regions.samples) * p.positions + some.first) * C : worker.d;
  };
  // Where nothing is normalised dx is written here, while d is at hand.
  const auto sum = [&](int64_t region, int64_t index, const PartWorker<A>& worker) {
    if (!sums_wanted && !dx_wanted) return;
    const int64_t at = region * of_region + index;
    const auto sum_block = [&](const Part& some) {
      A* d = place(region, some, worker);
      const BackwardRows<A> rows = rows_of(some);
      auto [pass, grad] = backward.differentiate(rows, worker, d);
      if (!normalises && dx_wanted) backward.scale_to_grad_input(rows, worker, d, factors.weight(some.n * C));
      if (!sums_wanted) return;
      pass.by = factors.for_sums(some.n * C);
      sum_backward<A, true, true>(pass, {d, C}, factors.of_z(some.n * C),
                                  {worker.sum(0), worker.sum(1), kinds.of_z ? worker.sum(2) : nullptr});
      if (kinds.post) {
        add_columns<A, false>(some.rows, C, grad, worker.sum(2));
        add_columns<A, false>(some.rows, C, {worker.product, C}, worker.sum(3));
      }
    };
    const auto move = [&] {
      if (!sums_wanted) return;
      for (int i = 0; i < kinds.count(); ++i) move_sums(C, worker.sum(i), sums.of_part(at, i));
    };
    parts.part(at).in_chains(C, sum_block, move);
  };
  const auto finish = [&](int64_t region) {
    if (!sums_wanted) return;
    for (int64_t n = region * regions.samples; n < (region + 1) * regions.samples; ++n) sums.add_up(n);
    for (int64_t g = 0; g < regions.groups; ++g) {
      const double rstd = rstd_in(region, g);
      GroupSums all;
      const auto for_samples = [&](const auto& body) {  // with where the group's channels begin
        for (int64_t n = region * regions.samples; n < (region + 1) * regions.samples; ++n)
          body(n * C + g * regions.group_channels);
      };
      for_samples([&](int64_t first) {
        all.add(regions.group_channels, factors.weight(first), sums.d() + first, sums.along() + first, rstd);
      });
      for_samples([&](int64_t first) { terms.set(first, regions.group_channels, all, p.group_size(), rstd); });
    }
  };
  const auto apply = [&](int64_t region, int64_t index, const PartWorker<A>& worker) {
    if (!dx_wanted || !normalises) return;
    parts.part(region * of_region + index).in_blocks(C, [&](const Part& some) {
      backward.write_grad_input(rows_of(some), worker, place(region, some, worker), keeps,
                                terms.from(some.n * C, factors),
                                soon(parts.stored(args.grad_input, parts.after(some)), p.dtype));
    });
  };
  in_stages(
      Shares{regions.count, of_region, p.elements()},
      [&] { return PartWorker<A>(block_rows(C), C, keeps ? regions.samples * p.positions * C : 0); }, prepare, sum,
      finish, apply);
  finish_factors(p, args, table, sums.all());
}

template void forward_of_pixels<float>(const NormProblem&, const NormForwardArgs&);
template void forward_of_pixels<double>(const NormProblem&, const NormForwardArgs&);
template void backward_of_pixels<float>(const NormProblem&, const NormBackwardArgs&);
template void backward_of_pixels<double>(const NormProblem&, const NormBackwardArgs&);

}  // namespace film::FILM_ISA
