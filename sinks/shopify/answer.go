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

// readProblems sorts the top-level errors: to an alias where there is data beside them, else to the whole request.
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
		f := classifyProblem(p)
		alias := p.alias()
		// A dead shop and a throttled request concern everything, whatever path they name.
		if !data || alias == "" || f.limited() || f.dead {
			if a.whole == nil {
				a.whole = f
			}
			continue
		}
		if a.problems[alias] == nil {
			f.unexecuted = false // the other aliases were executed: only this one has failed
			a.problems[alias] = f
		}
	}
}

// garbage is a 200 whose body is no answer of the Admin API: a proxy's page, or an answer cut in the middle. The
// request may have been executed.
func garbage(body []byte) *failure {
	return &failure{
		category: event.Unknown, counts: true, unanswered: true,
		message: "The answer is not the Admin API's: " + cut(string(body), 200),
	}
}
