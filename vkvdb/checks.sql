-- What must hold in a catalog. Each query is named by the comment above it and must return no row.

-- score-twice: a sample was scored twice at the same site, head and metric
SELECT job, sample, site, head, metric, count(*) AS times FROM scores GROUP BY ALL HAVING times > 1 LIMIT 20;

-- score-without-job: scores of a job that is not there
SELECT DISTINCT job FROM scores ANTI JOIN jobs USING (job);

-- score-without-sample: scores of a sample that the job's dataset does not have
SELECT DISTINCT job, dataset, sample
FROM scores JOIN jobs USING (job) ANTI JOIN samples USING (dataset, sample) LIMIT 20;

-- score-nowhere: scores at a site that the job's model does not have
SELECT DISTINCT job, site, stage, layer, part
FROM scores JOIN jobs USING (job) JOIN sites USING (site) ANTI JOIN layers USING (model, site)
WHERE stage NOT IN ('floor', 'ceiling') LIMIT 20;

-- score-missing: a job with fewer scores of a metric at one site and head than at another
SELECT job, metric, min(n + n_undefined) AS fewest, max(n + n_undefined) AS most
FROM summaries WHERE grp = '' GROUP BY job, metric HAVING fewest < most;

-- job-count: a job that scored more samples than it says
SELECT job, id, n, scored
FROM jobs JOIN (SELECT job, count(DISTINCT sample) AS scored FROM scores GROUP BY job) USING (job)
WHERE scored > n;

-- summary-count: summaries that do not stand on the job's scores
SELECT job, scored, summed
FROM (SELECT job, count(*) AS scored FROM scores WHERE metric NOT LIKE 'iou of %' GROUP BY job)
    FULL JOIN (SELECT job, sum(n + n_undefined) AS summed FROM summaries WHERE grp = '' GROUP BY job) USING (job)
WHERE scored IS DISTINCT FROM summed;

-- job-without-model: a job whose model is not there
SELECT job, id, model FROM jobs ANTI JOIN models USING (model);

-- job-without-dataset: a job whose dataset is not there
SELECT job, id, dataset FROM jobs ANTI JOIN datasets USING (dataset);

-- dataset-count: a dataset with other images or samples than it says
SELECT datasets.name, datasets.images, count(images.image) AS found
FROM datasets LEFT JOIN images USING (dataset) GROUP BY ALL HAVING datasets.images <> found;

-- sample-without-image: a sample on an image that the dataset does not have
SELECT dataset, sample, image
FROM (SELECT dataset, sample, unnest(images) AS image FROM samples) ANTI JOIN images USING (dataset, image) LIMIT 20;

-- layer-misnamed: a layer whose number is not that of its stage, layer and part
SELECT layers.* FROM layers JOIN sites USING (site)
WHERE (layers.stage, layers.layer, layers.part) IS DISTINCT FROM (sites.stage, sites.layer, sites.part);
