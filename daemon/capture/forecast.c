#include "daemon/capture/forecast.h"

void forecast_new_life(struct forecast *f)
{
	f->frames = f->backfilled = 0;
	f->announced = false;
}

void forecast_look(struct forecast *f, uint32_t frames, uint32_t backfilled)
{
	if (backfilled && !f->backfilled) {
		f->known = true;
		f->length = f->frames;
	}
	f->frames = frames;
	f->backfilled = backfilled;
}

bool forecast_due(struct forecast *f, uint32_t ahead, bool backfilling)
{
	bool begun = backfilling && !f->seen;

	f->seen = backfilling;
	if (begun)
		return true;
	if (f->backfilled)
		return f->backfilled + FORECAST_LATE_FRAMES >= f->frames;
	if (!f->known || f->announced || f->frames + ahead < f->length)
		return false;
	f->announced = true;
	return true;
}

bool forecast_reliable(const struct forecast *f)
{
	return f->known && (f->backfilled || f->frames <= f->length + f->length / 4);
}
