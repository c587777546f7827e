//! What mgre's tests share: network namespaces, packets, captures.
