//! Published results, reproduced: `spillway-sim paper NAME`.
