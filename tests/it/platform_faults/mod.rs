//! A platform that is hard to reach: its network, its connections, its addresses.

mod addresses;
mod closes;
mod http1;
mod http2;
mod network;
