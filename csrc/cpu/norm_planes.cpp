// Normalisation of groups of planes: a row is the positions of one channel of one sample, and a group, which has its
// statistics in common, is some rows of a sample ("group") or those of a channel in all samples ("batch").
#include "norm_factors.h"
#include "norm_kernels.h"
#include "norm_schedule.h"
#include "norm_sums.h"

namespace film::FILM_ISA {
namespace {

// Some columns of some rows of a group.
struct Block {
  int64_t row, rows, column, columns;
};

// Groups of rows, cut into blocks: of whole rows, or of a part of one.
struct Groups {
  int64_t batch, channels, count, rows, columns, block_rows, block_columns;
  bool of_batch;

  explicit Groups(const NormProblem& p)
      : batch(p.batch),
        channels(p.channels),
        count(p.norm == Norm::batch   ? p.channels
              : p.norm == Norm::group ? p.batch * p.groups
                                      : p.batch),
        rows(p.batch * p.channels / count),
        columns(p.positions),
        block_rows(std::max<int64_t>(kBlock / p.positions, 1)),
        block_columns(std::min(kBlock, p.positions)),
        of_batch(p.norm == Norm::batch) {}

  int64_t chunks() const { return (columns + block_columns - 1) / block_columns; }  // of a row
  int64_t blocks() const { return (rows + block_rows - 1) / block_rows * chunks(); }
  Block block(int64_t b) const {
    const int64_t row = b / chunks() * block_rows, column = b % chunks() * block_columns;
    return {row, std::min(block_rows, rows - row), column, std::min(block_columns, columns - column)};
  }
  int64_t sample(int64_t group, int64_t row) const { return of_batch ? row : (group * rows + row) / channels; }
  int64_t channel(int64_t group, int64_t row) const { return of_batch ? group : (group * rows + row) % channels; }
  // Rows are numbered through the groups.
  int64_t number(int64_t group, int64_t row) const { return group * rows + row; }
  int64_t elements() const { return batch * channels * columns; }

  StoredRows stored(const Cube& cube, int64_t group, const Block& b) const {
    return {cube.data, sample(group, b.row) * cube.n + channel(group, b.row) * cube.c + b.column,
            of_batch ? cube.n : cube.c};
  }
};

// What a thread works in: blocks.
template <class A>
struct Worker {
  Scratch<A> x{kBlock}, out{kBlock};
};

// Those of all rows of a group.
template <class A>
void set_factors(const AffineTable<A>& factors, const NormProblem& p, const Groups& groups, const FactorTable<A>& table,
                 int64_t group, double mean, double rstd) {
  const A near = static_cast<A>(mean);
  for (int64_t r = 0; r < groups.rows; ++r)
    factors.set(groups.number(group, r), {p.position, table, groups.sample(group, r), groups.channel(group, r)}, near,
                mean - near, rstd);
}

constexpr Along kAlong{false, false};

}  // namespace

template <class A>
void forward_of_planes(const NormProblem& p, const NormForwardArgs& args) {
  const Groups groups(p);
  const FactorTable<A> table(p, args.by);
  const AffineTable<A> factors(p.batch * p.channels);
  const Modulate<A> modulate = modulate_of<A>(p.activation, kAlong, p.position);
  const int64_t blocks = groups.blocks();
  std::vector<Moments> moments(p.norm == Norm::none ? 0 : groups.count * blocks);
  A* statistics = static_cast<A*>(args.statistics);

  const auto read = [&](int64_t group, const Block& b, const Worker<A>& worker) {
    return widened<A>(groups.stored(args.input, group, b), p.dtype, b.rows, b.columns, worker.x);
  };
  const auto measure = [&](int64_t group, int64_t block, const Worker<A>& worker) {
    if (p.norm == Norm::none) return;
    const Block b = groups.block(block);
    moments[group * blocks + block] = moments_of<A>(b.rows, b.columns, read(group, b, worker));
  };
  const auto finish = [&](int64_t group) {
    if (p.norm == Norm::none) return set_factors(factors, p, groups, table, group, 0, 1);
    Moments all;
    for (int64_t b = 0; b < blocks; ++b) all.add(moments[group * blocks + b]);
    const double variance = all.squares / all.count;
    statistics[group] = static_cast<A>(all.mean), statistics[groups.count + group] = static_cast<A>(variance);
    set_factors(factors, p, groups, table, group, all.mean, rstd_of(p, variance));
  };
  const auto apply = [&](int64_t group, int64_t block, const Worker<A>& worker) {
    const Block b = groups.block(block);
    const StoredRows to = groups.stored(args.output, group, b);
    const Rows<A> y = target<A>(to, p.dtype, b.columns, worker.out);
    modulate({b.rows, b.columns, read(group, b, worker), factors.from(groups.number(group, b.row))}, p.lower_slope, y);
    narrow_rows(to, p.dtype, b.rows, b.columns, y);
  };
  in_stages(groups.count, blocks, groups.elements(), [](bool) { return Worker<A>(); }, measure, finish, apply);
}

namespace {

// What backward sums, for each part of a row that a block has; and all of a row.
struct Sums {
  int64_t parts;
  std::vector<double> of_parts, of_rows;

  Sums(int64_t rows, int64_t chunks, bool post)
      : parts(rows * chunks), of_parts((post ? 4 : 2) * parts), of_rows((post ? 4 : 2) * rows) {}
  double* part(int which) { return of_parts.data() + which * parts; }
  // The sum of the parts of a row, in order.
  double add_up(int which, int64_t row, int64_t chunks) {
    double sum = 0;
    for (int64_t i = 0; i < chunks; ++i) sum += part(which)[row * chunks + i];
    return sum;
  }
};

template <class A>
struct BackwardWorker {
  Scratch<A> x{kBlock}, grad{kBlock}, d{kBlock}, product{kBlock}, out{kBlock};
  Scratch<A> kept;  // d of a whole group, where that fits the cache

  explicit BackwardWorker(int64_t elements_kept) : kept(elements_kept) {}
};

}  // namespace

template <class A>
void backward_of_planes(const NormProblem& p, const NormBackwardArgs& args) {
  const Groups groups(p);
  const FactorTable<A> table(p, args.by);
  const int64_t rows = p.batch * p.channels, blocks = groups.blocks(), chunks = groups.chunks();
  const AffineTable<A> factors(rows);
  Scratch<A> weight(rows), constant(rows), slope_of_xhat(rows);  // of dx
  const bool post = p.position == Position::post && (args.grad_gamma != nullptr || args.grad_beta != nullptr);
  const bool normalises = p.norm != Norm::none, dx_wanted = args.grad_input.data != nullptr;
  const bool sums_wanted = args.sums_wanted() || normalises;
  Sums sums(sums_wanted ? rows : 0, chunks, post);
  const Slope<A> slope = slope_of<A>(p.activation, kAlong, post);
  const A* statistics = static_cast<const A*>(args.statistics);
  const int64_t size = groups.rows * groups.columns;  // of a group

  const auto prepare = [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      const double rstd = normalises ? rstd_of(p, statistics[groups.count + group]) : 1;
      set_factors(factors, p, groups, table, group, normalises ? statistics[group] : 0, rstd);
      for (int64_t r = 0; r < groups.rows; ++r) {
        const int64_t at = groups.number(group, r), n = groups.sample(group, r), c = groups.channel(group, r);
        weight[at] = static_cast<A>(double(table.gamma(n)[c]) * table.weight()[c] * rstd);
        constant[at] = slope_of_xhat[at] = 0;
      }
    }
  };
  share(groups.count, groups.elements(), prepare);

  // d of a block, and what it was made from.
  const auto differentiate = [&](int64_t group, const Block& b, const BackwardWorker<A>& worker, A* d) {
    const RowPass<A> pass{b.rows, b.columns,
                          widened<A>(groups.stored(args.input, group, b), p.dtype, b.rows, b.columns, worker.x),
                          factors.from(groups.number(group, b.row))};
    const Rows<const A> grad = widened<A>(groups.stored(args.grad, group, b), p.dtype, b.rows, b.columns, worker.grad);
    slope(pass, p.lower_slope, grad, {d, b.columns}, {worker.product, b.columns});
    return std::pair(pass, grad);
  };
  const auto place = [&](const Block& b, const BackwardWorker<A>& worker, bool kept) -> A* {
    return kept ? worker.kept + b.row * groups.columns + b.column * b.rows : worker.d;
  };
  const bool keeps = dx_wanted && sums_wanted && size <= kElementsKept && takes_whole_units(groups.count);

  const auto sum = [&](int64_t group, int64_t block, const BackwardWorker<A>& worker) {
    if (!sums_wanted) return;
    const Block b = groups.block(block);
    A* d = place(b, worker, keeps);
    const auto [pass, grad] = differentiate(group, b, worker, d);
    const int64_t first = groups.number(group, b.row) * chunks + b.column / groups.block_columns;
    sum_backward<A, false, false>(pass, {d, b.columns}, {sums.part(0) + first, sums.part(1) + first});
    if (!post) return;
    add_rows<A>(b.rows, b.columns, grad, sums.part(2) + first);
    add_rows<A>(b.rows, b.columns, {worker.product, b.columns}, sums.part(3) + first);
  };
  const auto finish = [&](int64_t group) {
    if (!sums_wanted) return;
    const double rstd = normalises ? rstd_of(p, statistics[groups.count + group]) : 1;
    double all = 0, along = 0;
    for (int64_t r = 0; r < groups.rows; ++r) {
      const int64_t at = groups.number(group, r);
      const double d = sums.add_up(0, at, chunks), of_xhat = sums.add_up(1, at, chunks) * rstd;
      sums.of_rows[at] = d, sums.of_rows[rows + at] = of_xhat;
      if (post)
        for (int i = 2; i < 4; ++i) sums.of_rows[i * rows + at] = sums.add_up(i, at, chunks);
      all += weight[at] * d, along += weight[at] * of_xhat;
    }
    if (!normalises) return;
    for (int64_t r = 0; r < groups.rows; ++r) {
      constant[groups.number(group, r)] = static_cast<A>(all / size);
      slope_of_xhat[groups.number(group, r)] = static_cast<A>(along / size * rstd);
    }
  };
  const auto apply = [&](int64_t group, int64_t block, const BackwardWorker<A>& worker) {
    if (!dx_wanted) return;
    const Block b = groups.block(block);
    A* d = place(b, worker, keeps);
    const int64_t at = groups.number(group, b.row);
    RowPass<A> pass{b.rows, b.columns, {}, factors.from(at)};
    if (keeps)
      pass.x = widened<A>(groups.stored(args.input, group, b), p.dtype, b.rows, b.columns, worker.x);
    else
      pass = differentiate(group, b, worker, d).first;
    const StoredRows to = groups.stored(args.grad_input, group, b);
    const Rows<A> dx = target<A>(to, p.dtype, b.columns, worker.out);
    grad_input_rows<A, false, false>(pass, {d, b.columns}, {weight + at, constant + at, slope_of_xhat + at}, dx);
    narrow_rows(to, p.dtype, b.rows, b.columns, dx);
  };
  in_stages(
      groups.count, blocks, groups.elements(), [&](bool) { return BackwardWorker<A>(keeps ? size : 0); }, sum, finish,
      apply);
  const double* of_rows = sums.of_rows.data();
  finish_factors(p, args, table,
                 {of_rows, of_rows + rows, of_rows + 2 * rows, of_rows + 3 * rows, groups.of_batch ? 1 : p.channels,
                  groups.of_batch ? p.batch : 1});
}

template void forward_of_planes<float>(const NormProblem&, const NormForwardArgs&);
template void forward_of_planes<double>(const NormProblem&, const NormForwardArgs&);
template void backward_of_planes<float>(const NormProblem&, const NormBackwardArgs&);
template void backward_of_planes<double>(const NormProblem&, const NormBackwardArgs&);

}  // namespace film::FILM_ISA
