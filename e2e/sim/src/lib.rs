//! A deterministic simulator that drives many cores over a modelled network
