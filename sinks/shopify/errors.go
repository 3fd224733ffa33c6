package shopify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/sinks/shopify/budget"
)

// failure is an answer that is no success, as the table of the design sorts it.
type failure struct {
	category event.Category
	message  string // a sentence for people
	field    string // path of the refused field
	reason   string
	// final: trying again cannot help until the product, the mapping or a person changes something.
	final bool
	// counts: the attempt counts against the product.
	counts bool
	// dead: the shop refuses everything.
	dead bool
	// unanswered: the request may have reached the shop.
	unanswered bool
	// unexecuted: the request as a whole was refused before anything happened; in parts it may be taken.
	unexecuted bool
	// reread: the shop is not what the shadow says.
	reread bool
	// unset: the shop's settings are not what they were: a location or a channel is not there any more.
	unset bool
	// undefined: the custom id's definition is not in the shop any more.
	undefined bool
	// daily: the shop makes no more variants today.
	daily bool
	// retryAfter is when to try again; zero: by the attempts table.
	retryAfter time.Duration
}

func (f *failure) Error() string { return string(f.category) + ": " + f.message }

// limited reports whether the shop asks for patience and has executed nothing.
func (f *failure) limited() bool { return f != nil && f.category == event.APILimit && !f.unanswered }

// classifyTransport sorts an error of the connection. Only a connection that never stood is sure to have carried
// nothing.
func classifyTransport(err error) *failure {
	f := &failure{category: event.Network, counts: true, unanswered: true}
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(err, &dns):
		f.message, f.unanswered = "The shop's name cannot be resolved.", false
	case errors.As(err, &op) && op.Op == "dial":
		f.message, f.unanswered = "The shop cannot be reached.", false
	case errors.Is(err, context.DeadlineExceeded):
		f.message = "The shop did not answer in time; what it did with the request is read before the next attempt."
	case errors.Is(err, context.Canceled):
		f.message, f.counts = "The push was stopped while the shop had the request.", false
	default:
		f.message = "The connection to the shop broke; what it did with the request is read before the next attempt."
	}
	f.message += " (" + cut(err.Error(), 300) + ")"
	return f
}

// classifyHTTP sorts a status other than 200.
func classifyHTTP(status int, header http.Header, body []byte) *failure {
	said := cut(strings.TrimSpace(string(body)), 300)
	f := &failure{message: strings.TrimSuffix(fmt.Sprintf("HTTP %d: %s", status, said), ": ")}
	switch {
	case status == http.StatusTooManyRequests && dailyVariant.MatchString(said):
		// Whether aliases before the one that makes variants were executed is not documented: the shop is read.
		f.category, f.retryAfter, f.unanswered, f.daily = event.APILimit, time.Hour, true, true
	case status == http.StatusTooManyRequests || status == 430:
		f.category, f.retryAfter = event.APILimit, retryAfter(header)
	case slices.Contains([]int{401, 402, 403, 404, 423}, status):
		f.category, f.dead = event.ShopifyError, true
		f.message = deadWords[status] + " (" + f.message + ")"
	case status >= 500:
		f.category, f.counts, f.unanswered = event.ShopifyError, true, true
		f.message = "Shopify had an error of its own; what it did is read before the next attempt. (" + f.message + ")"
	case status >= 300 && status < 400:
		f.category, f.dead = event.ShopifyError, true
		f.message = fmt.Sprintf("The shop's address redirects to %.200q; the token is sent to no other host.", header.Get("Location"))
	case status == http.StatusBadRequest || status == http.StatusRequestEntityTooLarge:
		f.category, f.counts, f.unexecuted = event.Unknown, true, true
	default:
		f.category, f.counts, f.unanswered = event.Unknown, true, true
	}
	return f
}

var deadWords = map[int]string{
	401: "The shop refuses the access token.",
	402: "The shop is frozen until its bill is paid.",
	403: "The shop denies access: the app lacks a scope or is not installed.",
	404: "There is no shop at this address.",
	423: "The shop is locked.",
}

// retryAfter reads Retry-After, which Shopify writes as decimal seconds; one second where it says nothing.
func retryAfter(h http.Header) time.Duration {
	s, err := strconv.ParseFloat(h.Get("Retry-After"), 64)
	if err != nil || s <= 0 || s > 3600 {
		return time.Second
	}
	return time.Duration(s * float64(time.Second))
}

// problem is an entry of the top-level errors of an answer.
type problem struct {
	Message    string         `json:"message"`
	Path       []any          `json:"path"`
	Extensions map[string]any `json:"extensions"`
}

func (p problem) code() string { return text(p.Extensions["code"]) }

// alias returns the alias that the problem is about; empty when it is about the whole request.
func (p problem) alias() string {
	if len(p.Path) == 0 {
		return ""
	}
	first := text(p.Path[0])
	if aliasForm.MatchString(first) {
		return first
	}
	return ""
}

var aliasForm = regexp.MustCompile(`^m[0-9]+$`)

// classifyProblem sorts a top-level error.
func classifyProblem(p problem) *failure {
	f := &failure{message: cut(p.Message, 500)}
	switch code := p.code(); code {
	case "THROTTLED":
		f.category = event.APILimit
	case "MAX_COST_EXCEEDED":
		f.category, f.final, f.unexecuted = event.Validation, true, true
	case "ACCESS_DENIED":
		f.category, f.dead = event.ShopifyError, true
		if need := text(p.Extensions["requiredAccess"]); need != "" {
			f.message += " Required access: " + cut(need, 200)
		}
	case "SHOP_INACTIVE":
		f.category, f.dead = event.ShopifyError, true
	case "INTERNAL_SERVER_ERROR", "TIMEOUT", "SERVICE_UNAVAILABLE":
		f.category, f.counts, f.unanswered = event.ShopifyError, true, true
	case "NOT_FOUND", "RESOURCE_NOT_FOUND":
		f.category, f.final, f.reread, f.unexecuted = event.Validation, true, true, true
	case "INVALID_VARIABLE", "BAD_REQUEST", "INVALID_FIELD_ARGUMENTS", "MAX_INPUT_SIZE_EXCEEDED", "undefinedField",
		"argumentLiteralsIncompatible", "variableMismatch", "missingRequiredArguments", "SIMULATOR_NOT_IMPLEMENTED":
		f.category, f.final, f.unexecuted = event.Validation, true, true
		f.field = problemField(p)
	default:
		f.category, f.counts, f.unanswered = event.Unknown, true, true
		if code != "" {
			f.message = code + ": " + f.message
		}
	}
	if undefined.MatchString(p.Message) {
		// Not "there is no such product": nothing can be found by custom id until it is defined again.
		*f = failure{category: event.ShopifyError, counts: true, undefined: true, message: f.message}
	}
	if strings.EqualFold(p.Message, "Throttled") {
		*f = failure{category: event.APILimit, message: p.Message}
	}
	return f
}

func problemField(p problem) string {
	problems := list(p.Extensions["problems"])
	if len(problems) == 0 {
		return ""
	}
	var path []string
	for _, part := range list(object(problems[0])["path"]) {
		path = append(path, fmt.Sprint(part))
	}
	return strings.Join(path, ".")
}

// userError is one refusal inside a 200 answer.
type userError struct {
	code, message string
	field         []string
}

func userErrors(payload map[string]any) []userError {
	var out []userError
	for _, key := range []string{"userErrors", "mediaUserErrors"} {
		for _, e := range list(payload[key]) {
			u := userError{code: text(object(e)["code"]), message: text(object(e)["message"])}
			for _, part := range list(object(e)["field"]) {
				u.field = append(u.field, fmt.Sprint(part))
			}
			out = append(out, u)
		}
	}
	return out
}

var (
	handleTaken  = regexp.MustCompile(`(?i)handle .*(already in use|has already been taken|taken)`)
	notThere     = regexp.MustCompile(`(?i)(does not exist|could not be found|not found|no longer exists|invalid id)`)
	undefined    = regexp.MustCompile(`(?i)metafield definition of type 'id' is required`)
	busy         = regexp.MustCompile(`(?i)another operation already in progress`)
	dailyVariant = regexp.MustCompile(`(?i)daily variant creation limit`)
)

// Codes of userErrors by what they mean. What stands in no list is VALIDATION: the merchandiser sees the message.
var (
	codesGone = []string{
		"PRODUCT_DOES_NOT_EXIST", "PRODUCT_VARIANT_DOES_NOT_EXIST", "OPTION_DOES_NOT_EXIST", "OPTION_VALUE_DOES_NOT_EXIST",
		"AT_LEAST_ONE_VARIANT_DOES_NOT_BELONG_TO_THE_PRODUCT", "NOT_FOUND", "INVALID_INVENTORY_ITEM", "FILE_DOES_NOT_EXIST",
		"MEDIA_DOES_NOT_EXIST", "VARIANT_ALREADY_EXISTS", "VARIANT_ALREADY_EXISTS_CHANGE_OPTION_VALUE", "OPTION_VALUE_ALREADY_EXISTS",
	}
	codesUnset    = []string{"INVALID_LOCATION", "TRACKED_VARIANT_LOCATION_NOT_FOUND"}
	fieldsUnset   = []string{"locationId", "publicationId"}
	codesIdentity = []string{"DUPLICATED_METAFIELD_VALUE", "CAPABILITY_VIOLATION", "DUPLICATED_VALUE"}
	codesPassing  = []string{
		"JOB_ERROR", "INTERNAL_ERROR", "IDEMPOTENCY_CONCURRENT_REQUEST", "IDEMPOTENCY_PREVIOUS_ATTEMPT_FAILED",
		"IDEMPOTENCY_KEY_PARAMETER_MISMATCH", "STALE_OBJECT", "SERVICE_UNAVAILABLE",
	}
)

// classifyUser sorts a userError. Nothing of its mutation was executed.
func classifyUser(root string, e userError) *failure {
	f := &failure{
		category: event.Validation, final: true, message: cut(e.message, 500), field: strings.Join(e.field, "."), reason: e.code,
	}
	switch {
	case e.code == "HANDLE_NOT_UNIQUE" || handleTaken.MatchString(e.message):
		f.category = event.Duplicate
	case root == "productSet" && slices.Contains(codesIdentity, e.code):
		// Somebody has created the product meanwhile: with our custom id it is the same product.
		f.category, f.reread = event.Duplicate, true
	case slices.Contains(codesUnset, e.code) || len(e.field) > 0 && slices.Contains(fieldsUnset, e.field[len(e.field)-1]):
		f.reread, f.unset = true, true
	case slices.Contains(codesGone, e.code) || (e.code == "" || ownerGone(root, e)) && notThere.MatchString(e.message):
		f.reread = true
	case dailyVariant.MatchString(e.message):
		f.category, f.final, f.retryAfter = event.APILimit, false, time.Hour
	case slices.Contains(codesPassing, e.code) || busy.MatchString(e.message):
		f.category, f.final, f.counts = event.ShopifyError, false, true
	}
	return f
}

// ownerGone reports a metafield of a product or variant that is not there: its code is no other than a bad value's.
func ownerGone(root string, e userError) bool {
	return strings.HasPrefix(root, "metafields") && len(e.field) > 0 && e.field[len(e.field)-1] == "ownerId"
}

// cut shortens a text from a shop to n bytes, at a character's border.
func cut(s string, n int) string {
	if len(s) <= n {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}

// reasonUnsent marks a request that never left.
const reasonUnsent = "UNSENT"

// unsent is a request that was held back for a reason of our own.
func unsent(message string) *failure {
	return &failure{category: event.APILimit, reason: reasonUnsent, message: message}
}

// unaffordable is a request that did not get its points.
func unaffordable(err error) *failure {
	if errors.Is(err, budget.ErrTooDear) {
		return &failure{category: event.Validation, reason: reasonUnsent, final: true, unexecuted: true, message: err.Error()}
	}
	return unsent(err.Error())
}

// broken is a request that could not be written: a fault of this program.
func broken(err error) *failure {
	return &failure{category: event.Unknown, reason: reasonUnsent, counts: true, message: "The request could not be written: " + err.Error()}
}
