// The drivers of norm_film, by what statistics are of and by what lies side by side in memory.
#pragma once

#include "../norm_problem.h"

namespace film::FILM_ISA {

// Statistics of groups of channels or of channels: rows are the positions of a channel, or the channels of a position.
template <class A>
void forward_of_planes(const NormProblem&, const NormForwardArgs&);
template <class A>
void backward_of_planes(const NormProblem&, const NormBackwardArgs&);
template <class A>
void forward_of_pixels(const NormProblem&, const NormForwardArgs&);
template <class A>
void backward_of_pixels(const NormProblem&, const NormBackwardArgs&);

// Statistics of positions.
template <class A>
void forward_across_planes(const NormProblem&, const NormForwardArgs&);
template <class A>
void backward_across_planes(const NormProblem&, const NormBackwardArgs&);
template <class A>
void forward_across_pixels(const NormProblem&, const NormForwardArgs&);
template <class A>
void backward_across_pixels(const NormProblem&, const NormBackwardArgs&);

}  // namespace film::FILM_ISA
