//! Black-box tests: programs are built, and what is found in them is compared with what the binutils find.

mod build;
mod damage;
mod native;
mod running;
mod separate;
