package shopifysim

import (
	"encoding/json"
	"net/http"
	"strings"
)

// control answers the simulator's own API, for tests in other processes:
//
//	GET  /_sim/shops                  domains, points, statistics
//	GET  /_sim/{shop}/products        what Shop.Products returns
//	POST /_sim/{shop}/health          {"kind": "locked"}: every request fails so; "" heals
//	POST /_sim/{shop}/inject          a Fault
//	POST /_sim/{shop}/points          {"points": 0}: what the bucket holds now
//	POST /_sim/faults                 Faults: the random ones, of all shops
//
// It is not protected: a simulator listens on loopback.
func (sim *Simulator) control(w http.ResponseWriter, r *http.Request, path string) {
	name, action, _ := strings.Cut(path, "/")
	if name == "shops" && r.Method == http.MethodGet {
		respond(w, sim.overview())
		return
	}
	if name == "faults" && r.Method == http.MethodPost {
		var f Faults
		if decode(w, r, &f) {
			sim.SetFaults(f)
			respond(w, map[string]any{"ok": true})
		}
		return
	}
	shop := sim.Shop(name)
	if shop == nil {
		http.Error(w, "no such shop", http.StatusNotFound)
		return
	}
	switch r.Method + " " + action {
	case "GET products":
		respond(w, shop.Products())
	case "POST health":
		var in struct {
			Kind FaultKind `json:"kind"`
		}
		if decode(w, r, &in) {
			shop.SetHealth(in.Kind)
			respond(w, map[string]any{"ok": true})
		}
	case "POST inject":
		var f Fault
		if decode(w, r, &f) {
			shop.Inject(f)
			respond(w, map[string]any{"ok": true})
		}
	case "POST points":
		var in struct {
			Points float64 `json:"points"`
		}
		if decode(w, r, &in) {
			shop.SetPoints(in.Points)
			respond(w, map[string]any{"ok": true})
		}
	default:
		http.Error(w, "no such action", http.StatusNotFound)
	}
}

func (sim *Simulator) overview() []any {
	out := []any{}
	for _, s := range sim.Shops() {
		out = append(out, map[string]any{"domain": s.Domain(), "points": s.Points(), "stats": s.Stats()})
	}
	return out
}

func decode(w http.ResponseWriter, r *http.Request, to any) bool {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(to); err != nil {
		http.Error(w, "decode: "+err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

func respond(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a client that is gone wants no answer
}
