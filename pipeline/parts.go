package pipeline

// The stages open these again after an error, through functions that cmd gives them; so their types have names that
// cmd can write.
type (
	CaptureStream   = captureStream   // what CaptureParts.Open returns
	CaptureProducer = captureProducer // what CaptureParts.Fence returns
	RelayProducer   = relayProducer   // what RelayKafka.Open returns
)
