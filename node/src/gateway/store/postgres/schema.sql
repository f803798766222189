-- What several gateways share. Docs: docs/keys-and-budgets.md, "Several gateways".

-- Keys and projects: a letter (k, p) and four bytes of id. The tally changes with every request: room on the page lets it
-- change in place.
create table if not exists spillway_holders (
  holder bytea primary key,
  record jsonb not null,
  tally jsonb not null
) with (fillfactor = 50);

-- What is set aside for jobs under way, and which gateway owes its end. `charged` is what was charged in full because that
-- gateway's lease ran out; it is set right if the gateway comes back.
create table if not exists spillway_reservations (
  job bytea primary key,
  key bytea not null,
  project bytea,
  owner bytea not null,
  money bigint not null,
  tokens bigint not null,
  charged boolean not null default false,
  at timestamptz not null default now()
);
create index if not exists spillway_reservations_owner on spillway_reservations (owner);

-- Gateways, and until when each is taken to be alive.
create table if not exists spillway_gateways (
  owner bytea primary key,
  alive_until timestamptz not null
);
