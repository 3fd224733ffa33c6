package shopify

import (
	"encoding/json"
	"net/http"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/sinks/shopify/budget"
)

// answer is what a shop said to one request.
type answer struct {
	// fields is the answer of each alias; nil where it is null or missing.
	fields map[string]map[string]any
	// problems are the failures of single aliases.
	problems map[string]*failure
	// rest is the failure of every alias that has no answer of its own, where others were executed.
	rest *failure
	// whole is the failure of the request as such; nil when each alias speaks for itself.
	whole *failure
	// requested and actual are what the shop says it charged; actual is negative where it does not say.
	requested, actual float64
	status            *budget.Reported
	version           string // X-Shopify-API-Version
}

// readAnswer classifies one HTTP answer. It takes anything for a body.
func readAnswer(status int, header http.Header, body []byte) *answer {
	a := &answer{
		fields: map[string]map[string]any{}, problems: map[string]*failure{}, actual: -1,
		version: header.Get("X-Shopify-Api-Version"),
	}
	if status != http.StatusOK {
		a.whole = classifyHTTP(status, header, body)
		return a
	}
	var in struct {
		Data       map[string]any  `json:"data"`
		Errors     json.RawMessage `json:"errors"`
		Extensions struct {
			Cost *struct {
				RequestedQueryCost float64  `json:"requestedQueryCost"`
				ActualQueryCost    *float64 `json:"actualQueryCost"`
				ThrottleStatus     *struct {
					MaximumAvailable   float64 `json:"maximumAvailable"`
					CurrentlyAvailable float64 `json:"currentlyAvailable"`
					RestoreRate        float64 `json:"restoreRate"`
				} `json:"throttleStatus"`
			} `json:"cost"`
		} `json:"extensions"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		a.whole = garbage(body)
		return a
	}
	if c := in.Extensions.Cost; c != nil {
		a.requested = c.RequestedQueryCost
		if c.ActualQueryCost != nil {
			a.actual = *c.ActualQueryCost
		}
		if t := c.ThrottleStatus; t != nil && t.MaximumAvailable > 0 {
			a.status = &budget.Reported{Maximum: t.MaximumAvailable, Available: t.CurrentlyAvailable, Restore: t.RestoreRate}
		}
	}
	for key, v := range in.Data {
		if m, ok := v.(map[string]any); ok {
			a.fields[key] = m
		}
	}
	a.readProblems(in.Errors, body, in.Data != nil)
	return a
}

// readProblems reads the top-level errors, of any form.
func (a *answer) readProblems(raw json.RawMessage, body []byte, data bool) {
	var problems []problem
	if len(raw) > 0 && string(raw) != "null" {
		var single string
		switch {
		case json.Unmarshal(raw, &problems) == nil:
		case json.Unmarshal(raw, &single) == nil: // {"errors": "[API] Invalid API key"}
			problems = []problem{{Message: single}}
		default:
			a.whole = garbage(body)
			return
		}
	}
	if len(problems) == 0 && !data {
		a.whole = garbage(body)
		return
	}
	for _, p := range problems {
		a.sort(p, data)
	}
}

// sort gives a top-level error to the alias that it names, or to all that it leaves without an answer.
func (a *answer) sort(p problem, data bool) {
	f, alias := classifyProblem(p), p.alias()
	// Invariant: where one alias was executed, the request is never sent again as a whole, and what the answer says of
	// that alias is settled. A dead shop and a throttled request concern everything only where nothing was executed.
	if executed := len(a.fields) > 0; !data || !executed && (alias == "" || f.limited() || f.dead) {
		if a.whole == nil {
			a.whole = f
		}
		return
	}
	f.unexecuted = false // others were executed: splitting the request would repeat them
	switch {
	case alias == "":
		if a.rest == nil {
			a.rest = f
		}
	case a.problems[alias] == nil:
		if a.fields[alias] != nil { // something below the alias has failed, after the mutation
			f.final, f.unanswered = false, true
		}
		a.problems[alias] = f
	}
}

// undefined reports that the custom id's definition is missing.
func (a *answer) undefined() bool {
	for _, f := range a.problems {
		if f.undefined {
			return true
		}
	}
	return a.whole != nil && a.whole.undefined || a.rest != nil && a.rest.undefined
}

// of returns the answer of one alias; both nil where the answer says nothing of it.
func (a *answer) of(alias string) (map[string]any, *failure) {
	switch {
	case a.problems[alias] != nil:
		return nil, a.problems[alias]
	case a.fields[alias] == nil:
		return nil, a.rest
	}
	return a.fields[alias], nil
}

// garbage is a 200 whose body is no answer of the Admin API: a proxy's page, or an answer cut in the middle. The
// request may have been executed.
func garbage(body []byte) *failure {
	return &failure{
		category: event.Unknown, counts: true, unanswered: true,
		message: "The answer is not the Admin API's: " + cut(string(body), 200),
	}
}
