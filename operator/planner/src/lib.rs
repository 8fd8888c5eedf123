//! Pure placement and scaling decisions
