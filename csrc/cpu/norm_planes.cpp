// Normalisation of groups of planes: a row is the positions of one channel of one sample, and a group, which has its
// statistics in common, is some rows of a sample ("group") or those of a channel in all samples ("batch").
#include "norm_backward.h"
#include "norm_kernels.h"
#include "norm_moments.h"

namespace film::FILM_ISA {
namespace {

// Some columns of some rows of a group, the first of which is of a sample and a channel.
struct Block {
  int64_t n, channel, row, rows, column, columns;
};

// Groups of rows, cut into blocks: of whole rows, or of a part of one.
struct Groups {
  int64_t batch, channels, count, rows, columns, block_rows, block_columns;
  int64_t chunks, blocks;  // of a row, of a group
  bool of_batch, stay;     // stay: in the cache of a thread, from one stage to the next

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
        chunks((columns + block_columns - 1) / block_columns),
        blocks((rows + block_rows - 1) / block_rows * chunks),
        of_batch(p.norm == Norm::batch),
        stay(size() <= kElementsKept && takes_whole_regions(count)) {}

  int64_t size() const { return rows * columns; }  // of a group
  // Rows are numbered through the groups: so stand the numbers of channels of samples, too.
  int64_t number(int64_t group, int64_t row) const { return group * rows + row; }
  Shares shares() const { return {count, blocks, batch * channels * columns}; }

  Block block(int64_t group, int64_t b) const {
    const int64_t row = b / chunks * block_rows, column = b % chunks * block_columns, at = number(group, row);
    return {of_batch ? at % batch : at / channels,
            of_batch ? at / batch : at % channels,
            row,
            std::min(block_rows, rows - row),
            column,
            std::min(block_columns, columns - column)};
  }
  // What is read after a block: where all of its group is at hand already, or is to be, the next group's.
  Block after(int64_t group, int64_t b, bool at_hand) const {
    return at_hand ? block(std::min(group + 1, count - 1), b) : block(group, std::min(b + 1, blocks - 1));
  }
  StoredRows stored(const Cube& cube, const Block& b) const {
    return {cube.data, b.n * cube.n + b.channel * cube.c + b.column, of_batch ? cube.n : cube.c};
  }
};

// What a thread works in: blocks.
template <class A>
struct Worker {
  Scratch<A> x{kBlock}, out{kBlock};
};

// The factors of all rows of a group.
template <class A>
void set_factors(const AffineTable<A>& factors, const Groups& groups, int64_t group, double mean, double rstd) {
  const Standing by{&mean, &rstd};
  const int64_t first = groups.number(group, 0);
  if (groups.of_batch)
    factors.template set<false, false>(first, groups.rows, group, by);
  else
    factors.template set<true, false>(first, groups.rows, first % groups.channels, by);
}

constexpr Along kAlong{false, false};

}  // namespace

template <class A>
void forward_of_planes(const NormProblem& p, const NormForwardArgs& args) {
  const Groups groups(p);
  const FactorTable<A> table(p, args.by, groups.of_batch);
  const AffineTable<A> factors(p, table, false);
  const Modulate<A> modulate = modulate_of<A>(p.activation, kAlong, p.position);
  const int64_t blocks = groups.blocks;
  std::vector<Moments> moments(p.norm == Norm::none ? 0 : groups.count * blocks);
  A* statistics = static_cast<A*>(args.statistics);

  const auto read = [&](const Block& b, const Worker<A>& worker) {
    return widened<A>(groups.stored(args.input, b), p.dtype, b.rows, b.columns, worker.x);
  };
  const auto measure = [&](int64_t group, int64_t block, const Worker<A>& worker) {
    if (p.norm == Norm::none) return;
    const Block b = groups.block(group, block);
    const Rows<const A> x = read(b, worker);
    Moments& found = moments[group * blocks + block];
    // Narrowed results are written in one go, which would wait for each line of memory.
    if (groups.stay && size_of(p.dtype) < static_cast<int64_t>(sizeof(A)))
      found = moments_of<A>(b.rows, b.columns, x, soon(groups.stored(args.output, b), p.dtype));
    else
      found = moments_of<A>(b.rows, b.columns, x);
  };
  const auto finish = [&](int64_t group) {
    if (p.norm == Norm::none) return set_factors(factors, groups, group, 0, 1);
    Moments all;
    for (int64_t b = 0; b < blocks; ++b) all.add(moments[group * blocks + b]);
    const double variance = all.squares / all.count;
    statistics[group] = static_cast<A>(all.mean), statistics[groups.count + group] = static_cast<A>(variance);
    set_factors(factors, groups, group, all.mean, rstd_of(p, variance));
  };
  const auto apply = [&](int64_t group, int64_t block, const Worker<A>& worker) {
    const Block b = groups.block(group, block);
    const StoredRows to = groups.stored(args.output, b);
    const Rows<A> y = target<A>(to, p.dtype, b.columns, worker.out);
    modulate({b.rows, b.columns, read(b, worker), factors.from(groups.number(group, b.row))}, p.lower_slope, y,
             soon(groups.stored(args.input, groups.after(group, block, groups.stay)), p.dtype));
    narrow_rows(to, p.dtype, b.rows, b.columns, y);
  };
  in_stages(groups.shares(), [] { return Worker<A>(); }, [](int64_t) {}, measure, finish, apply);
}

namespace {

// What backward sums: of each part of a row that a block has, and of all of the row. Of up to four kinds.
struct Sums {
  int64_t rows, chunks, kinds;
  Scratch<double> of_parts, of_rows;

  Sums(int64_t rows, int64_t chunks, int64_t kinds)
      : rows(rows), chunks(chunks), kinds(kinds), of_parts(kinds * rows * chunks), of_rows(4 * rows) {}
  double* part(int64_t kind, int64_t row) const { return of_parts + (kind * rows + row) * chunks; }
  double* row(int64_t kind, int64_t row) const { return of_rows + kind * rows + row; }

  void clear(int64_t first, int64_t count) const {
    for (int64_t kind = 0; kind < kinds; ++kind) std::fill_n(part(kind, first), count * chunks, 0.0);
  }
  // Adds up the parts of rows.
  void add_up(int64_t first, int64_t count) const {
    for (int64_t kind = 0; kind < kinds; ++kind)
      for (int64_t i = first; i < first + count; ++i) {
        add_by_halves(part(kind, i), chunks, 1, 1);
        *row(kind, i) = *part(kind, i);
      }
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
  const FactorTable<A> table(p, args.by, groups.of_batch);
  const AffineTable<A> factors(p, table, true);
  const GradInputTerms<A> terms(p);
  const SumKinds kinds(p, args);
  const bool normalises = p.norm != Norm::none, dx_wanted = args.grad_input.data != nullptr;
  const bool sums_wanted = args.sums_wanted() || normalises;
  const Sums sums(p.batch * p.channels, groups.chunks, sums_wanted ? kinds.count() : 0);
  const BackwardOfRows<A, false> backward(p, kinds.post);
  const A* statistics = static_cast<const A*>(args.statistics);

  const auto rstd_in = [&](int64_t group) { return normalises ? rstd_of(p, statistics[groups.count + group]) : 1; };
  const auto prepare = [&](int64_t group) {
    const int64_t first = groups.number(group, 0);
    set_factors(factors, groups, group, normalises ? statistics[group] : 0, rstd_in(group));
    sums.clear(first, groups.rows);
    terms.clear(first, groups.rows);
  };
  const auto rows_of = [&](int64_t group, const Block& b, const Block& next) {
    const auto stored = [&](const Cube& cube) { return groups.stored(cube, b); };
    const auto soon_after = [&](const Cube& cube) { return soon(groups.stored(cube, next), p.dtype); };
    return BackwardRows<A>{b.rows,
                           b.columns,
                           stored(args.input),
                           stored(args.grad),
                           stored(args.grad_input),
                           factors.from(groups.number(group, b.row)),
                           {soon_after(args.input), soon_after(args.grad)}};
  };
  const bool keeps = normalises && dx_wanted && groups.stay;
  const bool ahead = groups.stay && groups.size() <= kElementsAhead;
  const auto place = [&](const Block& b, const BackwardWorker<A>& worker) -> A* {
    return keeps ? worker.kept + b.row * groups.columns + b.column * b.rows : worker.d;
  };

  // Where nothing is normalised dx is written here, while d is at hand.
  const auto sum = [&](int64_t group, int64_t block, const BackwardWorker<A>& worker) {
    if (!sums_wanted && !dx_wanted) return;
    const Block b = groups.block(group, block);
    A* d = place(b, worker);
    BackwardRows<A> at = rows_of(group, b, groups.after(group, block, ahead));
    if (keeps && ahead)
      at.soon.one = soon(at.grad_input, p.dtype);  // the second stage has the next group's input fetched
    auto [pass, grad] = backward.differentiate(at, worker, d);
    const int64_t row = groups.number(group, b.row), chunk = b.column / groups.block_columns;
    if (!normalises && dx_wanted) backward.scale_to_grad_input(at, worker, d, factors.weight(row));
    if (!sums_wanted) return;
    pass.by = factors.for_sums(row);
    sum_backward<A, false, false>(
        pass, {d, b.columns}, factors.of_z(row),
        {sums.part(0, row) + chunk, sums.part(1, row) + chunk, kinds.of_z ? sums.part(2, row) + chunk : nullptr});
    if (!kinds.post) return;
    add_rows<A>(b.rows, b.columns, grad, sums.part(2, row) + chunk);
    add_rows<A>(b.rows, b.columns, {worker.product, b.columns}, sums.part(3, row) + chunk);
  };
  const auto finish = [&](int64_t group) {
    if (!sums_wanted) return;
    const int64_t first = groups.number(group, 0);
    sums.add_up(first, groups.rows);
    GroupSums all;
    all.add(groups.rows, factors.weight(first), sums.row(0, first), sums.row(1, first), rstd_in(group));
    terms.set(first, groups.rows, all, groups.size(), rstd_in(group));
  };
  const auto apply = [&](int64_t group, int64_t block, const BackwardWorker<A>& worker) {
    if (!dx_wanted || !normalises) return;
    const Block b = groups.block(group, block);
    const BackwardRows<A> at = rows_of(group, b, groups.after(group, block, ahead));
    backward.write_grad_input(at, worker, place(b, worker), keeps, terms.from(groups.number(group, b.row), factors),
                              at.soon.one);
  };
  in_stages(groups.shares(), [&] { return BackwardWorker<A>(keeps ? groups.size() : 0); }, prepare, sum, finish, apply);
  finish_factors(p, args, table, {sums.row(0, 0), sums.row(1, 0), sums.row(2, 0), sums.row(3, 0)});
}

template void forward_of_planes<float>(const NormProblem&, const NormForwardArgs&);
template void forward_of_planes<double>(const NormProblem&, const NormForwardArgs&);
template void backward_of_planes<float>(const NormProblem&, const NormBackwardArgs&);
template void backward_of_planes<double>(const NormProblem&, const NormBackwardArgs&);

}  // namespace film::FILM_ISA
