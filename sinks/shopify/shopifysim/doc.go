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
//	fields_*.go   what each type answers            set_*.go and others: one file for the mutations of a domain
//
// # Non-obvious
//
//   - Execution is deterministic: given the same requests at the same instants a shop ends in the same state with the
//     same ids. The journal depends on it; anything random (faults) is decided outside execution.
//   - A mutation changes a clone of its product and puts it back when there is no error, so that nothing is left half.
//   - Money and quantities keep Shopify's text form ("10.00").
//   - Queries never take ids and never change state.
package shopifysim
