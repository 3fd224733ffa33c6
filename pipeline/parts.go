package pipeline

// The stages open these again after an error, through functions that cmd gives them; so their types have names that
// cmd can write.
type (
	// CaptureStream is what CaptureParts.Open returns.
	CaptureStream = captureStream
	// CaptureProducer is what CaptureParts.Fence returns.
	CaptureProducer = captureProducer
	// RelayProducer is what RelayKafka.Open returns.
	RelayProducer = relayProducer
)
