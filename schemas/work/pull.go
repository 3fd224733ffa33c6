package work

// Pull asks for parked products that are due and can fly.
type Pull struct {
	// Partitions of which the caller holds the lease.
	Partitions []int32
	// Closed are shops that take nothing now.
	Closed []string
	// Room is how many products more a shop takes; Default is that of the shops that are not in it. Room of the shop ""
	// is that of products that wait for all their shops. Zero or less is none.
	Room    map[string]int
	Default int
	// InHand are products that come back until they are settled, as pulling claims nothing, and would take the place of
	// others.
	InHand []string
	// N bounds the answer.
	N int
	// After continues the round through campaigns and shops. The zero value begins one.
	After PullCursor
}

// PullCursor is how far a caller has come in its round through the campaigns of each lane and the shops of each
// campaign: who was served last is served last again. It is a value: a call makes a new one.
type PullCursor struct {
	// Campaigns is the last one that was served, by lane.
	Campaigns map[Lane]int64
	// Shops is the last shop that was served, by lane and campaign.
	Shops map[PullTurn]string
}

// PullTurn names the shops of a campaign that wait in a lane.
type PullTurn struct {
	Lane     Lane
	Campaign int64
}

// Pulled are due products, the most urgent lane first; within a lane campaigns and shops take turns.
type Pulled struct {
	Parked []Parked
	// Next is where the next call goes on.
	Next PullCursor
}

// Pauses are what people have stopped, besides campaigns, of which nothing is pulled: it waits and goes on absorbing
// changes.
type Pauses struct {
	// All stops every push.
	All   bool
	Lanes map[Lane]bool
	Shops map[string]bool
}

// Stops reports whether a push to this shop in this lane has to wait.
func (p *Pauses) Stops(shop string, lane Lane) bool {
	return p.All || p.Lanes[lane] || p.Shops[shop]
}
