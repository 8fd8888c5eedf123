//! The API types of group sluice.dev
