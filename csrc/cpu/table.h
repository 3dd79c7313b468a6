// What the table of an instruction set is made of; the tiles of AMX take some of it over (amx.cpp).
#pragma once

#include "kernels.h"

namespace film::FILM_ISA {

void run_forward(const Problem&, const ForwardArgs&);
PackedWeight packing(const Problem&, const View& weight);
void run_pack(const Problem&, const PackArgs&);
void run_grad_input(const Problem&, const GradInputArgs&);
void run_grad_weight(const Problem&, const GradWeightArgs&);
void run_norm_forward(const NormProblem&, const NormForwardArgs&);
void run_norm_backward(const NormProblem&, const NormBackwardArgs&);

}  // namespace film::FILM_ISA
