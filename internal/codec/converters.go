package codec

import (
	"context"
	"errors"

	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
)

// DataConverter is the SDK's default data converter with the codec behind it.
//
// Where a workflow meets a payload that cannot be decrypted, it panics, which
// makes the SDK fail that workflow task and the server repeat it, until somebody
// corrects ENCRYPTION_KEYS. An error would be taken for the run's own: it would
// end the run without a row, drop a signal, or record a paid answer as a failure.
// Everywhere else there is an error, always an *Error.
func (c *Codec) DataConverter() converter.DataConverter {
	return dataConverter{converter.NewCodecDataConverter(converter.GetDefaultDataConverter(), c)}
}

// FailureConverter encrypts messages and stack traces of failures as well, if
// there is a key. Types, which are codes, stay readable. In workflows it panics
// as DataConverter does; elsewhere a text that cannot be decrypted stays
// "Encoded failure".
func (c *Codec) FailureConverter() converter.FailureConverter {
	data := converter.NewCodecDataConverter(converter.GetDefaultDataConverter(), c)
	failures := func(dc converter.DataConverter) converter.FailureConverter {
		return temporal.NewDefaultFailureConverter(temporal.DefaultFailureConverterOptions{
			DataConverter: dc, EncodeCommonAttributes: c.Encrypts(),
		})
	}
	return failureConverter{FailureConverter: failures(data), inWorkflow: failures(blocking{data})}
}

// dataConverter is told by the SDK where it is used (converter.ContextAware).
type dataConverter struct{ converter.DataConverter }

func (d dataConverter) WithWorkflowContext(converter.WorkflowContext) converter.DataConverter {
	return blocking(d)
}

func (d dataConverter) WithContext(context.Context) converter.DataConverter { return d }

// blocking is a data converter inside a workflow.
type blocking struct{ converter.DataConverter }

func (b blocking) FromPayload(p *commonpb.Payload, valuePtr any) error {
	return block(b.DataConverter.FromPayload(p, valuePtr))
}

func (b blocking) FromPayloads(p *commonpb.Payloads, valuePtrs ...any) error {
	return block(b.DataConverter.FromPayloads(p, valuePtrs...))
}

func block(err error) error {
	if unreadable, ok := errors.AsType[*Error](err); ok {
		panic(unreadable)
	}
	return err
}

// failureConverter is told as well, in another way: a failure of an activity is
// turned into an error by the workflow that called it and by nobody else.
type failureConverter struct {
	converter.FailureConverter
	inWorkflow converter.FailureConverter
}

func (f failureConverter) WithSerializationContext(sc converter.SerializationContext) converter.FailureConverter {
	if activity, ok := sc.(converter.ActivitySerializationContext); ok && activity.WorkflowID != "" {
		return f.inWorkflow
	}
	return f
}
