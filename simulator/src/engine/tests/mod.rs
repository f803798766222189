//! The engine by itself: what each rule says, the real runs, and a stepper that joins no steps.

mod naive;
mod real;
mod rules;
