//! Routing at scale: gateways, replicas and a network between them, with any policy in the gateways.
