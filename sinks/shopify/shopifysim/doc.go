// Package shopifysim is a Shopify Admin GraphQL API that runs without Shopify: the judge of everything that Shelfwire
// sends, and a shop to develop against.
//
// One Simulator holds any number of shops. A request goes the way it goes at Shopify: token, parsing and validation
// against the real schema (schemas/admin), coercion of variables, exact requested cost (sinks/shopify/cost) against
// the shop's leaky bucket, execution, refund of what was not used. Shopify's rules for products, variants, options,
// metafields, media, inventory and publications are kept, with its error codes; what the simulator does not know is
// refused with SIMULATOR_NOT_IMPLEMENTED and never answered from imagination.
//
// # Where what is
//
//	simulator.go  Config, New, shops, Run           http.go       requests, faults, the /_sim/ endpoints
//	request.go    parse, validate, charge, answer   coerce.go     variables and arguments
//	execute.go    selection sets, nulls, errors     connection.go pages and cursors
//	bucket.go     the leaky bucket                  journal.go    acknowledged mutations survive kill -9
//	state.go      what a shop holds                 dump.go       typed view of it, for audits in tests
//	fields_*.go   what each type answers            *_mutations.go, product_set.go: the mutations of one domain each
//	search.go     search queries                    validate.go   validation errors in Shopify's words
//	faults.go     the ways to fail                  control.go    the same for tests in other processes
//
// # Non-obvious
//
//   - Execution is deterministic: given the same requests at the same instants a shop ends in the same state with the
//     same ids. The journal depends on it; anything random (faults) is decided outside execution.
//   - A mutation changes a clone of its product and puts it back when there is no error, so that nothing is left half.
//   - Money and quantities keep Shopify's text form ("10.00").
//   - Queries never take ids and never change state.
//   - A query for metafields by keys answers them under "namespace.key", as real shops were recorded to do.
//
// # Not simulated
//
// Orders, customers, markets, price lists, translations, selling plans and bundles; bulk operations, staged uploads and
// webhooks; collections by rule; linked options; the taxonomy (any category id is taken, only the id is answered);
// access scopes; the daily limit of new variants (but FaultKind TooMany answers it); the search index's delay; the
// check that a repeated idempotency key comes with the fields of its input in the same order. Jobs and asynchronous
// productSet are done when they are answered. What an error says where no recording and no Shopify page tells is
// worded from the description of its code in the schema.
package shopifysim
